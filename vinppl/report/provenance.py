"""The section on how a run was made, for those who want to make it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vinppl.report.blocks import Block, Details, Facts, Section
from vinppl.report.material import Material

__all__ = ["provenance_section"]

FILES = {
    "config.json": "every option, versions, fingerprint of the data",
    "result.nc": "posterior, for ArviZ",
    "forecast.nc": "forecast, for ArviZ",
    "scores.csv": "scores of the forecast by horizon",
    "periods.csv": "periods of films",
    "log.jsonl": "progress and events",
}


def provenance_section(material: Material) -> Section:
    """Return the section on options, versions and files."""
    attrs = material.run.posterior.attrs
    versions = material.config.get("versions", {})
    there = [(name, what) for name, what in FILES.items() if (material.run.folder.path / name).exists()]
    facts = [
        ("Script", f"inference/{material.run.options['kind']}.py"),
        (
            "Posterior written",
            str(attrs.get("created_at", "unknown")).replace("T", " ").replace("+00:00", " UTC"),
        ),
        ("Data", f"fingerprint {str(material.config.get('data', 'unknown'))[:16]}"),
    ]
    blocks: list[Block] = [
        Facts(tuple(facts)),
        Details("Options", (Facts(tuple(_options(material.run.options))),)),
        Details("Versions", (Facts(tuple((str(k), str(v)) for k, v in versions.items())),)),
        Details("Files of the run", (Facts(tuple(there)),)),
    ]
    return Section("provenance", "How it was made", tuple(blocks))


def _options(options: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested options under dotted names; paths without their folders, which are those of a machine."""
    found: list[tuple[str, str]] = []
    for name, value in options.items():
        if isinstance(value, dict):
            found += _options(value, f"{prefix}{name}.")
        elif name in ("data", "model"):
            found.append((f"{prefix}{name}", Path(str(value)).name))
        elif name != "kind":
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            found.append((f"{prefix}{name}", "none" if shown is None or shown == "" else f"{shown}"))
    return found
