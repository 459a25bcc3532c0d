"""What a run folder holds, read once for all sections."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from vinppl._checks import require
from vinppl.checkpoint import load_checkpoint
from vinppl.cli import LoadedRun, load_run
from vinppl.equations import Equations
from vinppl.errors import DataError
from vinppl.export import get_group, group_names, read_result
from vinppl.frame_scores import FilmArrays, film_arrays, film_scores
from vinppl.growth import GROUP
from vinppl.report.numbers import number
from vinppl.report.priors import Prior, find_priors, learned_parameters
from vinppl.scores import forecast_scores

__all__ = ["Material", "gather"]


@dataclass(frozen=True)
class Material:
    """Everything that the sections are made of.

    Attributes:
        run: the finished run.
        trajectory: index of the trajectory that figures show.
        config: what `config.json` holds.
        events: lines of the log.
        forecast: the ArviZ object of the forecast; `None` if none was made.
        priors: of all latent sites.
        points: parameters without a prior, with their numbers of entries.
        fit: the state that SVI saved; empty for NUTS.
    """

    run: LoadedRun
    trajectory: int
    config: dict[str, Any]
    events: list[dict[str, Any]]
    forecast: Any
    priors: list[Prior]
    points: dict[str, int]
    fit: dict[str, Any] = field(default_factory=dict)

    @property
    def is_film(self) -> bool:
        """Whether the data are films."""
        return self.run.fitted.image_shape is not None

    @property
    def is_nuts(self) -> bool:
        """Whether the posterior was sampled by chains."""
        return bool(self.run.options["kind"] == "mcmc")

    @property
    def posterior(self) -> xr.Dataset:
        """Posterior draws."""
        return get_group(self.run.posterior, "posterior")

    @property
    def place(self) -> str:
        """The run folder, for command lines."""
        return str(self.run.folder.path)

    @property
    def time_unit(self) -> str:
        """Unit of time, empty if unknown."""
        return self.run.fitted.time_unit

    def time(self, value: float) -> str:
        """Return a time with its unit."""
        return f"{number(value)} {self.time_unit or 'units of time'}"

    @property
    def shown(self) -> str:
        """Which trajectory the figures show, ` of trajectory 3`; empty if there is only one."""
        if self.run.fitted.num_trajectories == 1:
            return ""
        return f" of {'clip' if self.is_film else 'trajectory'} {self.run.fitted.names[self.trajectory]}"

    @property
    def equations(self) -> Equations | None:
        """The equations that the model gives; `None` if it gives none."""
        write = getattr(self.run.model, "equations", None)
        given = write() if callable(write) else None
        return given if isinstance(given, Equations) else None

    @cached_property
    def film(self) -> FilmArrays:
        """The forecast of films as plain arrays, which take long to read."""
        return film_arrays(self.forecast)

    @cached_property
    def scores(self) -> pd.DataFrame | None:
        """Scores of the forecast at held-out measurements; `None` without any."""
        if self.forecast is None:
            return None
        scores = film_scores(self.film) if self.is_film else forecast_scores(self.forecast)
        count = "num_frames" if self.is_film else "num_points"
        return scores if scores[count].iloc[-1] else None

    @property
    def growth(self) -> xr.Dataset | None:
        """The uncertainty growth of the forecast; `None` if it was not computed."""
        if self.forecast is None or GROUP not in group_names(self.forecast):
            return None
        return get_group(self.forecast, GROUP)

    def finished(self) -> dict[str, Any]:
        """Return what the log says of the end of the inference; empty if it does not say it."""
        return next((e for e in reversed(self.events) if e.get("event") == "finished"), {})

    @property
    def losses(self) -> NDArray[np.float64]:
        """Negative evidence lower bound of every step of SVI, nats; empty for NUTS or if it is not kept."""
        losses = self.fit.get("losses")
        return losses.numpy() if isinstance(losses, Tensor) else np.zeros(0)

    def prior(self, site: str) -> Prior | None:
        """Return the prior of a site."""
        return next((prior for prior in self.priors if prior.site == site), None)


def gather(path: str | Path, *, trajectory: int = 0) -> Material:
    """Read a run folder.

    Args:
        path: the folder.
        trajectory: index of the trajectory that figures show.

    Raises:
        DataError: if the folder holds no finished run, its data have changed, or a file is damaged.
        ValueError: for a trajectory that is not there.
    """
    run = load_run(path)
    count = run.fitted.num_trajectories
    require(0 <= trajectory < count, f"trajectory must be an index from 0 to {count - 1}", trajectory)
    saved = None if run.options["kind"] == "mcmc" else load_checkpoint(run.folder.checkpoint / "svi.pt")
    return Material(
        run=run,
        trajectory=trajectory,
        config=run.folder.config(),
        events=run.folder.events(),
        forecast=_read_forecast(run),
        priors=find_priors(run.model, run.train, run.draws(1), run.parameters),
        points=learned_parameters(run.model, run.train),
        fit=saved or {},
    )


def _read_forecast(run: LoadedRun) -> Any | None:
    if not run.folder.forecast.exists():
        return None
    fix = f"Make it again by inference/forecast.py {run.folder.path}."
    try:
        forecast = read_result(run.folder.forecast)
    except OSError as error:
        raise DataError(f"{run.folder.forecast} cannot be read ({error.strerror}). {fix}") from error
    missing = sorted({"predictions", "predictions_constant_data"} - set(group_names(forecast)))
    if missing:
        raise DataError(f"{run.folder.forecast} holds no {' and no '.join(missing)}. {fix}")
    return forecast
