"""How long a motion takes to repeat: the period of paths, and its posterior under a fitted model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pyro import poutine
from scipy.signal import find_peaks
from torch import Tensor

from vinppl._checks import require
from vinppl.draws import learned, prototype, require_latent
from vinppl.encoders import INITIAL_SITES
from vinppl.forecast import extend
from vinppl.state import PhaseState

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["path_periods", "period_lines", "posterior_periods"]

Array = NDArray[np.float64]

TURN = 2 * math.pi

LEAST_SWING = 1e-3
"""Least height of a maximum above its surroundings, as a share of the range of positions."""

QUANTILES = (0.5, 0.05, 0.95)


def path_periods(positions: Tensor, times: Tensor, *, angle: bool = False) -> Tensor:
    """Return the periods of paths without noise.

    A motion of one coordinate turns back exactly twice a period, and damping, which moves the midpoint
    between the extremes, leaves that alone. The period of a swing is the mean time from maximum to maximum
    and from minimum to minimum, each at the vertex of the parabola through three samples; that of an angle
    that goes round is the mean time of its whole turns. Some ten samples a period are needed.

    Args:
        positions: one coordinate, shape `(*batch, time)`. Angles are in radians and not wrapped.
        times: increasing, in units of time, shape `(time,)` or broadcastable with `positions`.
        angle: whether the coordinate is an angle; it goes round where its extremes are a turn apart.

    Returns:
        Shape `(*batch,)`, in units of time; NaN for paths that show less than one whole period, from
        one extreme to the next of its kind, or are not finite. Swings of less than a thousandth of the range
        count as rest.

    Raises:
        ValueError: if shapes disagree, or there are fewer than three times.
    """
    require(
        positions.ndim >= 1 and positions.shape[-1] >= 3,
        "positions must have shape (*batch, time) with at least three times",
        positions,
    )
    require(
        1 <= times.ndim <= positions.ndim and times.shape[-1] == positions.shape[-1],
        f"times must have one entry for each of the {positions.shape[-1]} positions in the last dimension",
        times,
    )
    x, t = (z.detach().cpu().double().numpy() for z in (positions, times.expand_as(positions)))
    pairs = zip(x.reshape(-1, x.shape[-1]), t.reshape(-1, x.shape[-1]), strict=True)
    found = torch.tensor([_period(*pair, angle=angle) for pair in pairs], dtype=torch.float64)
    return found.reshape(positions.shape[:-1]).to(positions)


def _period(x: Array, t: Array, *, angle: bool) -> float:
    """Return the period of one path, NaN for none."""
    if not np.isfinite(x).all():
        return math.nan
    if angle and np.ptp(x) >= TURN:
        return _time_of_turns(x - x[0], t)
    spans = [span for span in (_time_between_peaks(x, t), _time_between_peaks(-x, t)) if span is not None]
    return float(np.mean(spans)) if spans else math.nan


def _time_between_peaks(x: Array, t: Array) -> float | None:
    """Return the mean time between maxima, `None` for fewer than two."""
    peaks, _ = find_peaks(x, prominence=LEAST_SWING * np.ptp(x))
    if len(peaks) < 2:
        return None
    first, last = (_vertex(x[i - 1 : i + 2], t[i - 1 : i + 2]) for i in peaks[[0, -1]])
    return (last - first) / (len(peaks) - 1)


def _vertex(x: Array, t: Array) -> float:
    """Return the time at which the parabola through three samples turns."""
    slopes, middles = np.diff(x) / np.diff(t), 0.5 * (t[1:] + t[:-1])
    return float(middles[0] - slopes[0] * (middles[1] - middles[0]) / (slopes[1] - slopes[0]))


def _time_of_turns(turned: Array, t: Array) -> float:
    """Return the mean time of the whole turns of an angle that begins at zero, NaN for none."""
    beyond = turned if turned.max() >= -turned.min() else -turned
    count = math.floor(beyond.max() / TURN)
    if count < 1:
        return math.nan
    last = int(np.argmax(beyond >= count * TURN))
    moment = np.interp(count * TURN, beyond[last - 1 : last + 1], t[last - 1 : last + 1])
    return float(moment - t[0]) / count


def posterior_periods(
    model: Any,
    draws: Mapping[str, Tensor],
    data: Trajectories,
    *,
    durations: float = 4.0,
    parameters: Mapping[str, Tensor] | None = None,
) -> pd.DataFrame:
    """Return the posterior of the period of every trajectory.

    Every draw is rolled out from the first time of the data over several times their duration, at their
    median step; with damping the period is the mean over that time.

    Args:
        model: a fitted Pyro model with a method `run(initial, data)`, such as `PixelVIN`; its
            `manifold`, if it has one, says which coordinates are angles.
        draws: latent sites at the first time of `data`, each `(num_draws, *site)`.
        data: the trajectories; only their times are looked at.
        durations: how many times the duration of the longest trajectory to roll out.
        parameters: learned parameters of the model, unconstrained, by name; by default as they are.

    Returns:
        A row for each trajectory and coordinate. Columns: `trajectory`, `coordinate`, `median`, `5%` and
        `95%` of the period in the data's unit of time, `complete` (share of the draws that show a whole
        period; the others have no say in the quantiles, which are NaN if there are none), `time_unit`.

    Raises:
        ValueError: if a site is missing, or `durations` is below 1.
    """
    require(durations >= 1, "durations must be at least 1", durations)
    initial, shared = _split_draws(model, draws, data)
    elapsed = float((data.times[:, -1] - data.times[:, 0]).max())
    future = extend(data, horizon=(durations - 1) * elapsed) if durations > 1 else data
    # In a handler a step without a solution makes a path NaN from there on.
    with torch.no_grad(), learned(model, data, parameters), poutine.block():
        path = poutine.condition(model.run, data=shared)(initial, future)
    manifold = getattr(model, "manifold", None)
    angles = (False,) * data.dim if manifold is None else manifold.periodic
    rows = []
    for n, name in enumerate(data.names):
        length = int(future.lengths[n])
        for i, coordinate in enumerate(data.coordinate_names):
            positions = path.q[:, n, :length, i]
            found = path_periods(positions, future.times[n, :length], angle=angles[i]).double().cpu().numpy()
            rows.append(
                {"trajectory": name, "coordinate": coordinate, **_row(found), "time_unit": data.time_unit}
            )
    return pd.DataFrame(rows)


def period_lines(table: pd.DataFrame) -> list[str]:
    """Return a table of `posterior_periods` as lines to print: median and 90 % interval of each period."""
    several = table["coordinate"].nunique() > 1
    lines = ["period: posterior median (90 % interval)"]
    for row in table.to_dict("records"):
        name = f"{row['trajectory']}, {row['coordinate']}" if several else f"{row['trajectory']}"
        unit = f" {row['time_unit']}" if row["time_unit"] else ""
        if not row["complete"]:
            lines.append(f"  {name}: no draw shows a whole period")
            continue
        few = "" if row["complete"] == 1 else f"; {row['complete']:.0%} of the draws show a whole period"
        lines.append(f"  {name}: {row['median']:.4g}{unit} ({row['5%']:.4g} to {row['95%']:.4g}){few}")
    return lines


def _split_draws(
    model: Any, draws: Mapping[str, Tensor], data: Trajectories
) -> tuple[PhaseState, dict[str, Tensor]]:
    """Return initial states `(draw, trajectory, dim)` and the other sites, `(draw, 1, *site)`."""
    names = require_latent(prototype(model, data), draws)
    shared = {name: draws[name].unsqueeze(1) for name in names if name not in INITIAL_SITES}
    return PhaseState(*(draws[name] for name in INITIAL_SITES)), shared


def _row(periods: Array) -> dict[str, float]:
    """Return quantiles of the periods that there are, and their share."""
    there = periods[np.isfinite(periods)]
    middle, low, high = np.quantile(there, QUANTILES) if len(there) else (np.nan,) * 3
    return {"median": middle, "5%": low, "95%": high, "complete": len(there) / len(periods)}
