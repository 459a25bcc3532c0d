"""Uncertainty growth as a labelled data set: the group `uncertainty_growth` of an ArviZ file.

For each quantity Q of `states`, `energy` and `obs` (measurements, with their noise) that the model has:

| variable | dims | what |
|---|---|---|
| `Q_sd` | trajectory, horizon, state or channel | predictive standard deviation |
| `Q_width` | the same | width of the central 90 % interval |
| `Q_entropy` | the same | differential entropy of the marginal, nats (`scipy.stats.differential_entropy`) |
| `Q_variance`, `Q_variance_error` | the same | predictive variance and its Monte Carlo error |
| `Q_parts`, `Q_parts_error` | the same, part | its parts, which add up to it, and their errors |

and further

| variable | dims | what |
|---|---|---|
| `horizons` | trajectory, horizon | times since the forecast begins, NaN where a trajectory has fewer |
| `separation` | trajectory, separation_horizon | mean log distance of draws, see `vinppl.growth.laws` |
| `separation_curve` | separation_horizon | the law with most support, while it is fitted |
| `law_support`, `law_rate`, `law_rate_error` | law | weights and rates of the laws of growth |
| `valid_time` | growth_draw, trajectory | valid prediction time of each draw |
| `energy_error`, `energy_trend`, `energy_drifts` | growth_draw, trajectory | see `vinppl.growth.energy` |

The coord `horizon` holds times where all trajectories share them, and else an index. On angles everything is
that of their position relative to the circular mean, as in `vinppl.scores`. Attributes: `estimator`, `law`,
`law_window` (last horizon of its fit), `saturated_separation`, `valid_time_reference` (`draws` or `truth`),
`mismatch` (see `vinppl.growth.shapley`), `energy_warning`, `point_estimates` (JSON; parameters without
uncertainty), `num_draws`, `draws_without_forecast`, `time_unit`, `channel_unit` (JSON).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import differential_entropy

from vinppl.export import unit_attribute
from vinppl.growth.energy import EnergyCheck
from vinppl.growth.fields import Fields
from vinppl.growth.laws import LAWS, GrowthLaw, Separations
from vinppl.growth.shapley import SharedVariance
from vinppl.posterior import dataset_coords

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["ESTIMATOR", "GROUP", "Growth", "TrajectoryGrowth", "build_dataset"]

Array = NDArray[np.float64]

GROUP = "uncertainty_growth"
"""Name of the group in an ArviZ file."""

ESTIMATOR = (
    "Shapley effects of groups of sites on the variance, by pick-freeze; sites given others by regression on "
    "the draws in unconstrained coordinates; errors by the bootstrap over draws"
)
INTERVAL = 0.9
"""Probability of the central interval whose width is stored."""

OWN_DIMS = {"states": ("state",), "energy": (), "obs": ("channel",)}


@dataclass(frozen=True, eq=False)
class TrajectoryGrowth:
    """Outputs of one trajectory and how their variance is shared.

    Attributes:
        horizon: times since the forecast begins, `(horizon,)`.
        values: states, energy and measurements with noise, angles unrolled, `(num_draws, horizon, field)`.
        shared: variance of each and its parts, `(horizon, field)`.
        energy: energy errors of shape `(num_draws, 1)`, `None` where they say nothing.
    """

    horizon: Array
    values: Array
    shared: SharedVariance
    energy: EnergyCheck | None


@dataclass(frozen=True, eq=False)
class Growth:
    """Everything that was found out about the growth of uncertainty.

    Attributes:
        trajectories: in the order of the data.
        apart: distances of draws; `None` for a model that does not record states.
        law: how they grow, likewise.
        valid: valid prediction times, `(num_draws, trajectory)`, likewise.
        against_truth: whether those are against the truth.
        lost: draws without a finite path.
        point_estimates: parameters of the model without uncertainty.
    """

    trajectories: Sequence[TrajectoryGrowth]
    apart: Separations | None
    law: GrowthLaw | None
    valid: Array | None
    against_truth: bool
    lost: int
    point_estimates: tuple[str, ...]

    @property
    def mismatch(self) -> float:
        """Log ratio of standard deviations of outputs drawn anew, 0 without any.

        The root mean square over horizons and outputs, the mean over trajectories and the largest of all
        sets of groups that are held.
        """
        found = [np.sqrt((t.shared.mismatch**2).mean((1, 2))) for t in self.trajectories]
        return float(np.max(np.mean(found, axis=0), initial=0.0))

    @property
    def energy(self) -> EnergyCheck | None:
        """Energy errors of all trajectories, `(num_draws, trajectory)`."""
        checks = [t.energy for t in self.trajectories if t.energy is not None]
        if len(checks) < len(self.trajectories):
            return None
        return EnergyCheck(*(np.concatenate(values, axis=1) for values in zip(*checks, strict=True)))

    @property
    def energy_warning(self) -> str:
        """What is wrong with the energies; empty if nothing is, or they say nothing."""
        return "" if self.energy is None else self.energy.warning


def build_dataset(growth: Growth, future: Trajectories, fields: Fields) -> xr.Dataset:
    """Return the data set; see the module docstring for its variables."""
    length = max(len(t.horizon) for t in growth.trajectories)
    horizons = _stack([t.horizon for t in growth.trajectories], length)
    variables: dict[str, Any] = {"horizons": (("trajectory", "horizon"), horizons)}
    units = {"horizons": future.time_unit}
    for name, columns in fields.columns.items():
        for key, dims, values in _quantity(growth.trajectories, columns, OWN_DIMS[name], length):
            variables[f"{name}_{key}"] = (dims, values)
            units[f"{name}_{key}"] = _unit(future, name, key)
    variables |= _law_variables(growth)
    units |= {
        "separation_horizon": future.time_unit,
        "valid_time": future.time_unit,
        "horizon": future.time_unit,
    }
    known = dataset_coords(future)
    shared = bool(np.allclose(horizons, horizons[:1], rtol=1e-9, atol=1e-12, equal_nan=True))
    coords = {name: known[name] for name in ("trajectory", "channel", "state")}
    coords |= {
        "horizon": horizons[0] if shared else np.arange(length),
        "part": list(growth.trajectories[0].shared.parts),
        "law": list(LAWS),
    }
    if growth.apart is not None:
        coords["separation_horizon"] = growth.apart.horizon
    used = {dim for dims, _ in variables.values() for dim in dims}
    dataset = xr.Dataset(variables, coords={k: v for k, v in coords.items() if k in used})
    if not shared:
        units.pop("horizon")
    for name, unit in units.items():
        if name in dataset.variables:
            dataset[name].attrs.update(unit_attribute(name, unit))
    return dataset.assign_attrs(_attributes(growth, future))


def _quantity(
    trajectories: Sequence[TrajectoryGrowth], columns: slice, own: tuple[str, ...], length: int
) -> Iterator[tuple[str, tuple[str, ...], Array]]:
    """Yield name, dims and values of what is stored of one quantity."""
    dims = ("trajectory", "horizon", *own)
    squeeze = (..., columns) if own else (..., columns.start)
    tail = (1 - INTERVAL) / 2
    found: dict[str, list[Array]] = {}
    for t in trajectories:
        x, shared = t.values[squeeze], t.shared
        low, high = np.quantile(x, [tail, 1 - tail], axis=0, method="weibull")
        per_trajectory = {
            "sd": np.sqrt(shared.variance[squeeze]),
            "width": high - low,
            "entropy": _entropy(x),
            "variance": shared.variance[squeeze],
            "variance_error": shared.variance_error[squeeze],
            "parts": np.stack([p[squeeze] for p in shared.parts.values()], axis=-1),
            "parts_error": np.stack([p[squeeze] for p in shared.part_errors.values()], axis=-1),
        }
        for key, values in per_trajectory.items():
            found.setdefault(key, []).append(values)
    for key, values in found.items():
        yield key, (*dims, "part") if key.startswith("parts") else dims, _stack(values, length)


def _entropy(x: Array) -> Array:
    """Return the differential entropy of each marginal, nats; minus infinity where draws agree."""
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(differential_entropy(x, axis=0))


def _stack(values: Sequence[Array], length: int) -> Array:
    """Stack arrays `(horizon, ...)` of trajectories, with NaN after the end of shorter ones."""
    padded = [
        np.pad(v, [(0, length - len(v)), *[(0, 0)] * (v.ndim - 1)], constant_values=np.nan) for v in values
    ]
    return np.stack(padded)


def _law_variables(growth: Growth) -> dict[str, Any]:
    """Return what is stored of the law of growth, valid times and energies."""
    variables: dict[str, Any] = {}
    if growth.apart is not None and growth.law is not None:
        logs, law = growth.apart.logs, growth.law
        variables["separation"] = (("trajectory", "separation_horizon"), logs.mean(0))
        variables["separation_curve"] = (("separation_horizon",), law.curve)
        for key, values in (("support", law.support), ("rate", law.rates), ("rate_error", law.rate_errors)):
            variables[f"law_{key}"] = (("law",), np.array([values[name] for name in LAWS]))
    if growth.valid is not None:
        variables["valid_time"] = (("growth_draw", "trajectory"), growth.valid)
    if growth.energy is not None:
        for key, values in growth.energy._asdict().items():
            variables[f"energy_{key}"] = (("growth_draw", "trajectory"), values)
    return variables


def _unit(future: Trajectories, name: str, key: str) -> str:
    """Return the unit of a variable of measurements, if the channels agree on one."""
    units = {channel.unit for channel in future.channels}
    if key == "entropy":
        return "nat"
    if name != "obs" or len(units) != 1 or key not in ("sd", "width"):
        return ""
    return units.pop()


def _attributes(growth: Growth, future: Trajectories) -> dict[str, str | int | float]:
    law = growth.law
    return {
        "estimator": ESTIMATOR,
        "interval": INTERVAL,
        "law": "none" if law is None else law.name,
        "law_window": 0.0 if law is None else law.window,
        "saturated_separation": 0.0 if growth.apart is None else growth.apart.saturated,
        "valid_time_reference": "truth" if growth.against_truth else "draws",
        "mismatch": growth.mismatch,
        "energy_warning": growth.energy_warning,
        "point_estimates": json.dumps(growth.point_estimates),
        "num_draws": len(growth.trajectories[0].values),
        "draws_without_forecast": growth.lost,
        "time_unit": future.time_unit,
        "channel_unit": json.dumps([channel.unit for channel in future.channels]),
    }
