"""A clip of one's own: from a film file to a forecast and a period, by default options."""

from __future__ import annotations

from pathlib import Path

import pyro
import pytest
import torch

from vinppl.data import Trajectories, read_video, write_video
from vinppl.film_forecast import forecast_films
from vinppl.fit import fit_svi
from vinppl.models import PixelVIN
from vinppl.periods import path_periods, posterior_periods
from vinppl.render import simulate_clips

CONTEXT, LONGEST = 10, 60  # frames at 10 Hz


def films(folder: Path, seed: int) -> Trajectories:
    """Write 10 grey films of pendulums, 6 s each, and read them as a user would."""
    pytest.importorskip("imageio_ffmpeg", reason="MP4 files need imageio-ffmpeg")
    rendered, _ = simulate_clips("pendulum", num_clips=10, num_times=LONGEST, seed=seed, levels="grey")
    folder.mkdir()
    for n, frames in enumerate(rendered.frames):
        write_video(frames, folder / f"swing{n}.mp4", 10.0)
    return read_video(folder).to(dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::vinppl.errors.NumericalWarning")
def test_a_clip_is_foretold_from_its_first_second(tmp_path: Path) -> None:
    data, new = films(tmp_path / "known", 0), films(tmp_path / "new", 1)
    pyro.clear_param_store()
    result = fit_svi(PixelVIN(data), data)
    draws = result.sample(100, data=data)

    periods = torch.as_tensor(posterior_periods(result.model, draws, data)["median"].to_numpy(copy=True))
    _, path = simulate_clips("pendulum", num_clips=10, num_times=4 * LONGEST, seed=0)
    truth = path_periods(path.q[..., 0], path.time, angle=True)
    # Near the separatrix a period says more about the last digit of the energy than about the film.
    assert float((periods / truth - 1).abs().median()) < 0.03

    found = forecast_films(
        result.model,
        result.guide,
        new,
        trained=data,
        shared=draws,
        num_context=CONTEXT,
    )
    levels = torch.stack([found.levels(n) for n in range(new.num_trajectories)])
    error, still = ((x - new.values).square().sum(-1).sqrt().mean(0) for x in (levels, found.background))
    for second in range(1, 6):
        part = slice(10 * second, 10 * second + 10)
        assert float(error[part].mean()) < float(still[part].mean()), f"{second} s after the first frame"
