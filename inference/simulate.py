"""Simulate noisy measurements of a ground-truth system and write them as CSV.

    python inference/simulate.py --system pendulum --out pendulum.csv
    python inference/simulate.py --system mass_spring --num-trajectories 25 --out spring.csv
    python inference/simulate.py --system duffing --parameters damping=0.1 --observe position --out d.csv

The defaults are the low-data setting of the VIN paper: 5 trajectories of 30 points at 10 Hz, noise 0.33.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from vinppl.cli import run_script
from vinppl.data import write_csv
from vinppl.simulate import simulate
from vinppl.systems import system


@dataclass(frozen=True)
class Config:
    """Options of a simulation.

    Attributes:
        out: CSV file to write.
        system: mass_spring, pendulum, damped_pendulum, driven_oscillator, duffing, coupled_oscillators,
            henon_heiles or kepler.
        parameters: parameters of the system, for example length=0.5 mass=2.
        num_trajectories: number of trajectories.
        num_times: samples of each.
        step_size: seconds between samples.
        noise_scale: standard deviation of the noise, one for all channels or one for each.
        observe: what is measured.
        seed: of initial states and noise.
    """

    out: Path
    system: str = "pendulum"
    parameters: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...")] = ()
    num_trajectories: int = 5
    num_times: int = 30
    step_size: float = 0.1
    noise_scale: tuple[float, ...] = (0.33,)
    observe: tuple[Literal["position", "velocity"], ...] = ("position", "velocity")
    seed: int = 0


def main(config: Config) -> None:
    """Simulate and write."""
    truth = system(config.system, **parse_parameters(config.parameters))
    noise = config.noise_scale[0] if len(config.noise_scale) == 1 else config.noise_scale
    data, _ = simulate(
        truth,
        num_trajectories=config.num_trajectories,
        num_times=config.num_times,
        step_size=config.step_size,
        noise_scale=noise,
        observe=config.observe,
        seed=config.seed,
    )
    write_csv(data, config.out)
    print(f"{truth}: wrote {data.num_trajectories} trajectories of {data.num_times} samples to {config.out}")


def parse_parameters(settings: tuple[str, ...]) -> dict[str, float]:
    """Return name=value settings as numbers."""
    parameters = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        try:
            parameters[name] = float(text)
        except ValueError:
            equals = ""
        if not equals:
            raise ValueError(f"parameters are written name=number; got {setting!r}.")
    return parameters


if __name__ == "__main__":
    run_script(main, Config, __doc__)
