"""The whole page: sections gathered, and written as one HTML file that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from vinppl.checkpoint import write_atomically
from vinppl.report.blocks import Page, Section
from vinppl.report.calibration import calibration_section
from vinppl.report.data import data_section
from vinppl.report.forecast import forecast_section
from vinppl.report.growth import growth_section
from vinppl.report.inference import inference_section
from vinppl.report.material import Material, gather
from vinppl.report.model import model_section
from vinppl.report.posterior import posterior_section
from vinppl.report.provenance import provenance_section
from vinppl.runs import RunFolder, versions

__all__ = ["build_page", "render_page", "write_report"]

SECTIONS = (
    data_section,
    model_section,
    inference_section,
    posterior_section,
    forecast_section,
    growth_section,
    calibration_section,
    provenance_section,
)

TEMPLATE = Environment(
    loader=PackageLoader("vinppl.report", "."),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
).get_template("page.html.jinja")


def write_report(run: str | Path, out: str | Path | None = None, *, trajectory: int = 0) -> Path:
    """Write the page of a run.

    Args:
        run: folder that `inference/svi.py` or `inference/mcmc.py` wrote.
        out: the file; by default `report.html` in that folder.
        trajectory: index of the trajectory that figures of the forecast show.

    Returns:
        The file.

    Raises:
        DataError: if the folder holds no finished run, its data have changed, or a file is damaged.
        ValueError: for a trajectory that is not there.
    """
    page = build_page(gather(run, trajectory=trajectory))
    path = RunFolder(run).report if out is None else Path(out)
    return write_atomically(path, lambda file: file.write(render_page(page).encode()))


def build_page(material: Material) -> Page:
    """Return the page of what was gathered."""
    options = material.run.options
    model = str(options["model"]).rpartition(":")[2].rpartition(".")[2]
    how = "NUTS" if material.is_nuts else "variational inference"
    when = str(material.run.posterior.attrs.get("created_at", "")).partition("T")[0]
    subtitle = f"{model}, fitted to {Path(options['data']).name} by {how}" + (f" on {when}" if when else "")
    sections: list[Section] = [section(material) for section in SECTIONS]
    return Page(
        title=f"Report of run {material.run.folder.path.resolve().name}",
        subtitle=subtitle,
        sections=tuple(sections),
        footer=f"Written by vinppl {versions()['vinppl']}.",
    )


def render_page(page: Page) -> str:
    """Return a page as HTML."""
    return TEMPLATE.render(page=page)
