"""Models by name: what is found, and every mistake through its message."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from example_data import simulated

from vinppl.fit import SVIOptions, fit_svi
from vinppl.loading import ModelError, build_model, find_model
from vinppl.models import NoisyStates, Pendulum, PendulumConfig

FILE = '''
from __future__ import annotations
from dataclasses import dataclass
import pyro
import torch
from pyro.distributions import Normal


@dataclass(frozen=True)
class Settings:
    """Options."""

    scale: float = 1.0
    wide: bool = False
    count: int = 2


class Level:
    """A class with options."""

    Config = Settings

    def __init__(self, data, config=Settings()):
        self.config = config

    def __call__(self, data):
        level(data, self.config.scale)


class Plain:
    """A class without options."""

    def __init__(self, data):
        self.size = data.num_times

    def __call__(self, data):
        level(data)


def level(data, scale=1.0):
    """A function."""
    with pyro.plate("trajectory", data.num_trajectories, dim=-1):
        x = pyro.sample("level", Normal(torch.tensor(0.0), scale))
        loc = x[..., None, None] + 0 * data.values
        pyro.sample("obs", Normal(loc, 0.5).to_event(2), obs=data.values)


class Broken:
    def __init__(self, data):
        raise RuntimeError("cannot be built")


number = 3
'''


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Path:
    file = tmp_path / "my_models.py"
    file.write_text(FILE)
    return file


def test_names_of_the_suite_and_of_modules() -> None:
    data = simulated()
    assert isinstance(build_model("Pendulum", data), Pendulum)
    assert isinstance(build_model("vinppl.models:Pendulum", data), Pendulum)
    assert isinstance(build_model("vinppl.models.noisy_states:NoisyStates", data), NoisyStates)


def test_settings_reach_the_options() -> None:
    settings = ["damping=[0.1, 0.5]", "noise=ar1", "drag=null", "max_step_size=0.05", "angle_offset=none"]
    model = build_model("Pendulum", simulated(), settings)
    assert model.config == PendulumConfig(damping=(0.1, 0.5), noise="ar1", max_step_size=0.05)
    sizes = build_model("NoisyStates", simulated(), ["hidden_sizes=[4, 5]", "angles=[0]"])
    assert sizes.config.hidden_sizes == (4, 5)


@pytest.mark.parametrize("name", ["Level", "Plain", "level"])
def test_models_of_a_users_file_fit(name: str, file: Path) -> None:
    data = simulated()
    model = build_model(f"{file}:{name}", data)
    result = fit_svi(model, data, SVIOptions(num_steps=3, check_every=1, start="prior", num_particles=1))
    assert result.sample(2)["level"].shape == (2, 3)


def test_options_of_a_users_class(file: Path) -> None:
    model = build_model(f"{file}:Level", simulated(), ["scale=2", "wide=true"])
    assert model.config.scale == 2
    assert model.config.wide is True


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        ("Pendulun", [], "vinppl.models has no model called 'Pendulun'. Did you mean Pendulum?"),
        ("Xyz", [], "has no model called 'Xyz'. It has "),
        (
            "no_such_module:Model",
            [],
            "there is no module 'no_such_module'. A model is named package.module:Name",
        ),
        ("vinppl.modles:Pendulum", [], "there is no module 'vinppl.modles'"),
        ("gone.py:Model", [], "the model file must exist; got gone.py"),
        ("Pendulum", ["dampin=[0.1,0.5]"], "PendulumConfig has no option 'dampin'. Did you mean damping?"),
        ("Pendulum", ["xyz=1"], "PendulumConfig has no option 'xyz'. It has gravity_over_length"),
        ("Pendulum", ["damping"], "options are written name=value; got 'damping'"),
        (
            "Pendulum",
            ["damping=0.1"],
            "option damping must be tuple[float, float] | None; got '0.1'. Pairs are",
        ),
        ("Pendulum", ["damping=[1, 2, 3]"], "option damping must be"),
        (
            "Pendulum",
            ["noise=normal"],
            "option noise must be Literal['gaussian', 'student_t', 'ar1']; got 'normal'",
        ),
        ("Pendulum", ["max_step_size=fast"], "option max_step_size must be float | None; got 'fast'"),
        ("Pendulum", ["max_step_size=true"], "option max_step_size must be float | None; got 'true'"),
        ("Pendulum", ["noise_scale=[-1, 1]"], "Pendulum could not be built: ValueError: the median"),
        ("Hierarchical", ["noise_spread=-1"], "must be positive"),
    ],
)
def test_mistakes_are_named(spec: str, settings: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        build_model(spec, simulated(), settings)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("Levle", [], "Did you mean Level?"),
        ("number", [], "is not a model: it must be a class or a function of the data"),
        ("level", ["scale=2"], "is a function and has no options; got scale=2"),
        ("Plain", ["scale=2"], "has no Config and so no options; got scale=2"),
        ("Broken", [], "could not be built: RuntimeError: cannot be built"),
        ("Level", ["count=1.5"], "option count must be int; got '1.5'"),
        ("Level", ["wide=3"], "option wide must be bool; got '3'"),
    ],
)
def test_mistakes_with_a_file_are_named(name: str, settings: list[str], message: str, file: Path) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        build_model(f"{file}:{name}", simulated(), settings)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("def f(:", "SyntaxError: invalid syntax"),
        ("import not_installed", "ModuleNotFoundError: No module named 'not_installed'"),
        ("x = 1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_files_that_fail_to_import_name_the_line(line: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text(f"import math\n\n{line}\n")
    with pytest.raises(ModelError, match=f"broken.py failed to import: {message}") as caught:
        find_model(f"{file}:Model")
    assert str(caught.value).count("line 3") == 1
