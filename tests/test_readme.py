"""The README says what is true: its model runs, its links resolve, its commands parse."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vinppl import SVIOptions, fit_svi, simulate, system
from vinppl.models import MassSpring

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_model_of_the_readme_fits() -> None:
    block = next(b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "class Quartic" in b)
    namespace: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), namespace)
    data, _ = simulate.simulate(system("duffing"), num_trajectories=2, num_times=12, noise_scale=0.05)
    model = namespace["Quartic"](data)  # type: ignore[operator]
    result = fit_svi(model, data, SVIOptions(num_steps=3, check_every=1, start="prior"))
    assert set(result.sample(4)) >= {"potential.a", "damping.coefficient", "noise_scale", "initial_position"}


@pytest.mark.filterwarnings("ignore::vinppl.errors.NumericalWarning")  # few and rough draws
def test_the_uncertainty_growth_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    block = next(
        b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "uncertainty_growth(" in b
    )
    data, _ = simulate.simulate(system("mass_spring"), num_trajectories=1, num_times=12, noise_scale=0.05)
    model = MassSpring(data)
    draws = {
        name: value + 0.01 * torch.rand(20, *value.shape)
        for name, value in {"potential.stiffness": torch.tensor(2.0), **model.initial_values(data)}.items()
    }
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"model": model, "draws": draws, "data": data})
    assert "Two draws agree for" in capsys.readouterr().out
    assert (tmp_path / "uncertainty_growth.png").exists()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_resolve(link: str) -> None:
    assert link.startswith("https://") or (ROOT / link).exists()


def test_commands_of_the_readme_parse() -> None:
    """A command with its data missing gets as far as looking for them: every option is known."""
    commands = re.findall(r"^python (inference/(?:svi|mcmc)\.py (?:.*\\\n)*.*)$", README, re.MULTILINE)
    assert commands
    for command in commands:
        words = shlex.split(command.replace("\\\n", " "))
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert words[words.index("--data") + 1] in done.stderr
