"""The section on the data: what was measured, and what of it was fitted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vinppl.report.blocks import Block, Facts, Section, Text
from vinppl.report.figures import MAX_CHANNELS, MAX_TRAJECTORIES, picture, plot_data, plot_film
from vinppl.report.material import Material
from vinppl.report.numbers import counted, number, percent, with_unit, words_of

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["data_section"]


def data_section(material: Material) -> Section:
    """Return the section on the data."""
    run = material.run
    blocks: list[Block] = [Facts(tuple(_facts(material)))]
    if material.is_film:
        shown = f"Frames of {_clip(run.fitted)}, from the first that was fitted to the last."
        blocks.append(picture(lambda: plot_film(run.fitted), "A strip of frames", shown))
    else:
        blocks.append(
            picture(
                lambda: plot_data(run.fitted, run.held_out),
                "The measurements of every channel against time",
                _caption(run.fitted, run.held_out),
            )
        )
    if run.train.num_times < run.fitted.num_times:
        what, whole = ("frame", "clip") if material.is_film else ("sample", "trajectory")
        text = (
            f"Initial states below are those of the last {counted(run.train.num_times, what)} of every "
            f"{whole}, from which forecasts start; all {what}s were fitted."
        )
        blocks.append(Text(text, "note"))
    return Section("data", "Data", tuple(blocks))


def _facts(material: Material) -> list[tuple[str, str]]:
    fitted, held_out, unit = material.run.fitted, material.run.held_out, material.time_unit
    what = ("clip", "frame") if material.is_film else ("trajectory", "sample")
    lengths = [int(length) for length in fitted.lengths]
    each = f"{lengths[0]}" if min(lengths) == max(lengths) else f"{min(lengths)} to {max(lengths)}"
    first, last = float(fitted.times[:, 0].min()), float(fitted.times.max())
    facts = [
        ("Source", Path(material.run.options["data"]).name),
        ("Fitted", f"{_several(len(lengths), what[0])} of {each} {what[1]}s"),
    ]
    if held_out is not None:
        more = int(held_out.lengths.sum())
        share = more / (more + sum(lengths))
        facts.append(("Held out", f"the last {percent(share)}, {more:,} {what[1]}s, for checking forecasts"))
    else:
        facts.append(("Held out", "nothing"))
    span = f"{number(first, 4)} to {with_unit(number(last, 4), unit)}"
    facts.append(("Time", f"{span}, typical step {with_unit(number(fitted.median_step), unit)}"))
    facts += _film_facts(fitted) if material.is_film else _channel_facts(fitted)
    if fitted.drive is not None:
        facts.append(("Known input", words_of(fitted.drive_names)))
    return facts


def _several(count: int, noun: str) -> str:
    return counted(count, noun, "trajectories" if noun == "trajectory" else "")


def _film_facts(fitted: Trajectories) -> list[tuple[str, str]]:
    height, width = fitted.frames.shape[-2:]
    values = fitted.values[fitted.mask]
    two = bool(((values == 0) | (values == 1)).all())
    return [("Frames", f"{height} × {width} pixels, {'black and white' if two else 'grey'}")]


def _channel_facts(fitted: Trajectories) -> list[tuple[str, str]]:
    described = [
        f"{c.name} ({', '.join(filter(None, (c.quantity, 'angle' if c.angle else '', c.unit)))})"
        for c in fitted.channels
    ]
    real = int(fitted.lengths.sum()) * fitted.num_channels
    missing = real - fitted.num_observed
    gaps = "none" if missing == 0 else f"{missing:,} of {real:,} values ({percent(missing / real)})"
    return [("Channels", words_of(described, MAX_CHANNELS)), ("Missing values", gaps)]


def _clip(fitted: Trajectories) -> str:
    return "the film" if fitted.num_trajectories == 1 else f"clip {fitted.names[0]}"


def _caption(fitted: Trajectories, held_out: Trajectories | None) -> str:
    shown = "Filled: fitted." if held_out is None else "Filled: fitted. Open: held out."
    if fitted.num_trajectories > MAX_TRAJECTORIES:
        shown += f" The first {MAX_TRAJECTORIES} of {fitted.num_trajectories} trajectories."
    if fitted.num_channels > MAX_CHANNELS:
        shown += f" The first {MAX_CHANNELS} of {fitted.num_channels} channels."
    return shown
