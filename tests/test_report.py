"""The page of a run: what it says is what was stored, it needs nothing else, and broken folders are named."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import shutil
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
import xarray as xr
from pyro.distributions import Gamma, LogNormal, MultivariateNormal, Normal
from scipy import stats

from vinppl.cli import DataOptions, VideoOptions, load_data, run_options
from vinppl.data import ColumnSpec, Trajectories, write_csv, write_video
from vinppl.equations import Equations, signed_sum
from vinppl.errors import DataError
from vinppl.export import add_group, get_group, read_result, write_result
from vinppl.fit import MCMCOptions, SVIOptions, fit_mcmc, fit_svi
from vinppl.forecast import extend, forecast
from vinppl.growth import GROUP, MIN_DRAWS, uncertainty_growth
from vinppl.loading import build_model
from vinppl.posterior import from_mcmc, from_svi
from vinppl.render import simulate_clips
from vinppl.report import figures, write_report
from vinppl.report.blocks import Command, Image, Section, Text
from vinppl.report.calibration import _memory, _transforms, calibration_section
from vinppl.report.forecast import _is_stale, forecast_section
from vinppl.report.growth import growth_section
from vinppl.report.inference import _judge, inference_section
from vinppl.report.markup import equation_markup
from vinppl.report.material import gather
from vinppl.report.numbers import counted, interval, number, percent, rounded, words_of
from vinppl.report.posterior import posterior_section
from vinppl.report.priors import describe_distribution, find_priors, learned_parameters
from vinppl.runs import RunFolder
from vinppl.simulate import simulate
from vinppl.systems import system

pytestmark = [
    pytest.mark.filterwarnings("ignore::vinppl.errors.ConvergenceWarning"),  # runs are tiny
    pytest.mark.filterwarnings("ignore::vinppl.errors.NumericalWarning"),
    pytest.mark.filterwarnings("ignore::vinppl.errors.PerformanceWarning"),
    pytest.mark.filterwarnings("ignore:the model has point-estimated parameters"),
]

SECTIONS = ["data", "model", "convergence", "posterior", "forecast", "growth", "calibration", "provenance"]
VOID = {"meta", "img", "source", "br", "link"}


class Reader(HTMLParser):
    """Read a page: its text, tables, addresses, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.images = 0
        self.text = ""
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.addresses += [found[k] or "" for k in ("src", "srcset", "href", "action", "data") if k in found]
        self.ids += [found["id"] or ""] if "id" in found else []
        if tag == "img":
            self.images += 1
            assert found["alt"]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} closes something else"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if self.tables and self.open[-1] in ("td", "th", "i", "sub", "sup") and "table" in self.open:
            self.tables[-1][-1][-1] += data

    def table(self, head: str) -> dict[str, dict[str, str]]:
        """Return the table whose first head is given, cells by row and column."""
        rows = next(rows for rows in self.tables if rows[0][0] == head)
        return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}


def read(path: Path) -> Reader:
    text = path.read_text(encoding="utf-8")
    reader = Reader(text)
    assert all(a.startswith(("data:image/", "#")) for a in reader.addresses)
    assert not re.search(r"(?i)https?://|//[a-z]+\.|@import|url\(|<script|<link", text)
    assert [name for name in reader.ids if name in SECTIONS] == SECTIONS
    assert {a.removeprefix("#") for a in reader.addresses if a.startswith("#")} <= set(reader.ids)
    assert "{{" not in text
    assert "nan" not in re.split(r"\W+", reader.text)
    return reader


# Runs


COLUMNS, VIDEO = ColumnSpec(), VideoOptions(size=10)
SELECT = DataOptions(train_fraction=0.6, dtype="float64")


@dataclasses.dataclass(frozen=True)
class Config:
    """Options that a run folder keeps."""

    model: str
    data: Path
    set: tuple[str, ...]
    columns: ColumnSpec = COLUMNS
    video: VideoOptions = VIDEO
    select: DataOptions = SELECT


def make_run(
    folder: Path, kind: str, model: str, *settings: str, data: Path
) -> tuple[RunFolder, Trajectories, Trajectories | None, Any]:
    """Begin a run folder as the scripts do; return it, the data and the model."""
    config = Config(model, data, settings)
    train, held_out = load_data(data, config.columns, config.select, config.video)
    run = RunFolder(folder)
    run.start(run_options(kind, config), data=train.fingerprint())
    return run, train, held_out, build_model(model, train, settings)


def add_forecast(run: RunFolder, model: Any, draws: Any, train: Any, held_out: Any, **options: Any) -> None:
    future = extend(train, horizon=0.5, held_out=held_out)
    result = forecast(model, draws, train, future, **options)
    if len(next(iter(draws.values()))) >= MIN_DRAWS:
        growth = uncertainty_growth(model, draws, train, future, num_bootstrap=20, num_horizons=12, **options)
        result = add_group(result, GROUP, growth)
    write_result(result, run.forecast)


@pytest.fixture(scope="module", autouse=True)
def quiet_module() -> Iterator[None]:
    """Make runs once, in double precision whatever came before."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of a NUTS run, an SVI run and a run on films, each with a forecast."""
    home = tmp_path_factory.mktemp("runs")
    with quiet():
        data, _ = simulate(system("mass_spring"), num_trajectories=2, num_times=40, noise_scale=0.1, seed=3)
        write_csv(data, home / "spring.csv")
        spring = home / "spring.csv"
        run, train, held_out, model = make_run(home / "nuts", "mcmc", "MassSpring", data=spring)
        options = MCMCOptions(num_chains=2, num_warmup=60, num_draws=60, num_workers=1)
        result = fit_mcmc(model, train, options)
        write_result(from_mcmc(result, attrs={"engine": result.engine}), run.result)
        run.log("finished", seconds=1.0)
        draws = {name: value[:30] for name, value in result.flat().items()}
        add_forecast(run, model, draws, train, held_out)

        run, train, held_out, model = make_run(
            home / "svi", "svi", "NoisyStates", "hidden_sizes=[4]", data=spring
        )
        steps = SVIOptions(num_steps=60, check_every=10, start="values", num_particles=2)
        fit = fit_svi(model, train, steps, checkpoint=run.checkpoint / "svi.pt")
        write_result(from_svi(fit, num_draws=80), run.result)
        run.log("finished", best_loss=fit.best_loss, best_step=fit.best_step, seconds=1.0)
        add_forecast(run, model, fit.sample(5), fit.data, held_out, parameters=fit.parameters)

        film, _ = simulate_clips("mass_spring", num_clips=1, num_times=24, size=10)
        write_video(film.frames, home / "clip.npz", 10.0)
        settings = ("num_taught=10", "hidden_sizes=[8]", "decoder_sizes=[8]", "integrator=velocity_verlet")
        clip = home / "clip.npz"
        run, train, held_out, model = make_run(home / "film", "svi", "PixelVIN", *settings, data=clip)
        steps = SVIOptions(num_steps=4, check_every=2, num_particles=1)
        fit = fit_svi(model, train, steps, checkpoint=run.checkpoint / "svi.pt")
        write_result(from_svi(fit, num_draws=40), run.result)
        add_forecast(run, model, fit.sample(5), fit.data, held_out, parameters=fit.parameters)
    return {name: home / name for name in ("nuts", "svi", "film")}


@pytest.fixture
def copied(places: dict[str, Path], tmp_path: Path) -> Path:
    """Return a copy of the NUTS run without its forecast, free to be broken."""
    shutil.copytree(places["nuts"], tmp_path / "run")
    (tmp_path / "run" / "forecast.nc").unlink()
    return tmp_path / "run"


def check_posterior_table(page: Reader, folder: Path) -> None:
    """Compare the table with the draws in the file, to half of its last digit."""
    table = page.table("number")
    posterior = get_group(read_result(folder / "result.nc"), "posterior")
    for name in ("noise_scale[q]", "noise_scale[v]"):
        channel = name.removesuffix("]").partition("[")[2]
        draws = posterior["noise_scale"].sel(channel=channel).values.ravel()
        expected = {
            "mean": draws.mean(),
            "sd": draws.std(),
            "5 %": np.quantile(draws, 0.05),
            "95 %": np.quantile(draws, 0.95),
        }
        for head, value in expected.items():
            shown = table[name][head]
            places = len(shown.partition(".")[2])
            assert abs(float(shown) - value) <= 0.5001 * 10**-places + 0.005 * draws.std(), (name, head)


def test_the_page_of_a_nuts_run(places: dict[str, Path], tmp_path: Path) -> None:
    path = write_report(places["nuts"], tmp_path / "here" / "page.html", trajectory=1)
    assert path == tmp_path / "here" / "page.html"
    page = read(path)
    check_posterior_table(page, places["nuts"])
    assert "MassSpring, fitted to spring.csv by NUTS" in page.text
    assert "d²q/dt² = −k q" in page.text
    assert page.images == 8  # data, traces, prior and posterior, three of the forecast, growth, calibration
    priors = page.table("site")
    assert priors["potential.stiffness"]["prior"] == f"LogNormal(loc={math.log(3):.4g}, scale=1.5)"
    low, high = stats.lognorm(1.5, scale=3).ppf([0.05, 0.95])
    assert priors["potential.stiffness"]["90 % of the prior"] == f"{low:.2g} to {high:.2g}"
    assert priors["potential.stiffness"]["symbol"] == "k"
    assert page.table("parameter").keys() == page.table("number").keys()
    assert "python inference/forecast.py" not in page.text
    assert page.table("channel")["all"]["points"] == str(2 * 16 * 2)
    assert "Forecast of trajectory 1 with its noise" in page.text


def test_the_page_of_an_svi_run_speaks_of_point_estimates(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every figure is made, but only those of the other pages are painted, which takes most of the time.
    monkeypatch.setattr(figures, "_encoded", lambda figure: Image("data:image/png;base64,", 1, 1))
    path = write_report(places["svi"])
    assert path == places["svi"] / "report.html"
    page = read(path)
    check_posterior_table(page, places["svi"])
    assert "by variational inference" in page.text
    assert "learned as point estimates, is missing from all bands" in page.text
    assert "--set potential=random_features" in page.text
    assert "The posterior is an approximation, normal given what an encoder reads off the data" in page.text
    assert "60; the state after step" in page.text
    assert "It was not computed with this forecast; it takes at least 10 draws" in page.text  # the growth


def test_the_page_of_a_run_on_films_shows_frames(places: dict[str, Path]) -> None:
    page = read(write_report(places["film"]))
    assert "10 × 10 pixels, black and white" in page.text
    assert "1 clip of 14 frames" in page.text
    assert "Frames by time since the forecast begins" in page.text
    assert "Over 10 held-out frames up to 1 s ahead" in page.text
    assert "The posterior leaves a pixel of the forecast" in page.text
    assert page.images == 7  # film, losses, prior and posterior, frames, portrait, energy, spread
    assert "Bernoulli(gφ(q(t)))" in page.text


# What is missing or broken


def texts(section: Section) -> str:
    """Return the text of the blocks and findings of a section."""
    blocks = [block.text for block in section.blocks if isinstance(block, Text | Command)]
    return "\n".join([*blocks, *(finding.text for finding in section.findings)])


def test_a_trajectory_that_is_not_there_is_named(places: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="trajectory must be an index from 0 to 1; got 2"):
        write_report(places["nuts"], trajectory=2)


def test_a_run_without_forecast_says_what_makes_one(copied: Path) -> None:
    material = gather(copied)
    command = f"python inference/forecast.py {copied}"
    for section in (forecast_section(material), growth_section(material), calibration_section(material)):
        assert section.blocks[1] == Command(command), section.name
    assert "its bands are unproven" in texts(calibration_section(material))


def test_a_run_without_held_out_samples_says_how_to_hold_some_out(
    places: dict[str, Path], copied: Path
) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["options"]["select"] |= {"train_fraction": 1.0, "first": 24}  # the samples that were fitted
    (copied / "config.json").write_text(json.dumps(config))
    material = gather(copied)
    assert "inference/mcmc.py .. --train-fraction 0.8" in texts(calibration_section(material))
    assert f"python inference/forecast.py {copied} --horizon 2.3" in texts(forecast_section(material))


def test_an_earlier_forecast_and_an_unfinished_run_are_told(places: dict[str, Path], copied: Path) -> None:
    shutil.copy(places["nuts"] / "forecast.nc", copied)
    assert not _is_stale(gather(copied))
    assert "did not finish" not in texts(inference_section(gather(copied)))
    result = read_result(copied / "result.nc")
    get_group(result, "posterior")["noise_scale"][:] *= 1.001
    write_result(result, copied / "result.nc")
    RunFolder(copied).log("resumed")
    material = gather(copied)
    assert _is_stale(material)
    assert "did not finish. Run inference/mcmc.py again" in texts(inference_section(material))


def test_broken_folders_are_named(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing holds no run: it has no config\.json"):
        write_report(tmp_path / "nothing")
    (copied / "forecast.nc").write_text("damaged")
    with pytest.raises(DataError, match=r"forecast\.nc cannot be read .* again by inference/forecast\.py"):
        write_report(copied)
    prior = get_group(read_result(copied / "result.nc"), "prior")
    xr.DataTree.from_dict({"prior": prior}).to_netcdf(copied / "result.nc", engine="h5netcdf")
    with pytest.raises(DataError, match=r"holds no constant_data and no posterior\. Run inference/mcmc\.py"):
        write_report(copied)
    (copied / "result.nc").unlink()
    with pytest.raises(DataError, match=r"has no result yet\. Run inference/mcmc\.py again to finish it"):
        write_report(copied)
    assert not (copied / "report.html").exists()


# Priors


def hierarchical(data: Any) -> None:
    """A group of which each trajectory has a mean of its own."""
    centre = pyro.sample("centre", Normal(0.0, 2.0))
    spread = pyro.sample("spread", Gamma(2.0, 4.0))
    with pyro.plate("trajectory", 3, dim=-1):
        own = pyro.sample("own", Normal(centre, spread))
    pair = pyro.sample("pair", LogNormal(torch.tensor([0.0, 1.0]), 0.5).to_event(1))
    vector = pyro.sample("vector", MultivariateNormal(torch.zeros(2), torch.eye(2)))
    size = pyro.param("size", torch.tensor(2.0))
    scaled = pyro.sample("scaled", Normal(0.0, size))
    pyro.sample("obs", Normal(own.sum() + pair.sum() + vector.sum() + scaled, 1.0), obs=torch.tensor(0.0))


def test_priors_are_those_of_the_model() -> None:
    draws = {
        name: torch.full((1, *shape), 0.7)
        for name, shape in {
            "centre": (),
            "spread": (),
            "own": (3,),
            "pair": (2,),
            "vector": (2,),
            "scaled": (),
        }.items()
    }
    found = {
        prior.site: prior for prior in find_priors(hierarchical, None, draws, {"size": torch.tensor(5.0)})
    }
    assert found["centre"].text == "Normal(loc=0, scale=2)"
    assert found["spread"].text == "Gamma(concentration=2, rate=4)"
    assert found["spread"].low is None
    assert found["own"].depends
    assert found["own"].low is None
    assert (found["own"].shape, found["own"].plates) == ((3,), ("trajectory",))
    assert found["pair"].text == "LogNormal(loc=(0, 1), scale=0.5)"
    assert found["pair"].low is not None
    np.testing.assert_allclose(found["pair"].low, stats.lognorm(0.5, scale=np.exp([0, 1])).ppf(0.05))
    assert found["vector"].text == "MultivariateNormal(loc=0, covariance_matrix=(1, 0, 0, 1))"
    assert found["scaled"].text == "Normal(loc=0, scale=5)"  # as it was learned
    assert not found["scaled"].depends
    assert learned_parameters(hierarchical, None) == {"size": 1}


def test_distributions_as_text() -> None:
    assert describe_distribution(Normal(torch.arange(6.0), 1.0).to_event(1)) == "Normal(loc=0 .. 5, scale=1)"
    assert describe_distribution(Normal(0.0, 1.0).mask(True)) == "Normal(loc=0, scale=1)"
    squeezed = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(0.0, 2.0), torch.distributions.transforms.SigmoidTransform()
    )
    assert describe_distribution(squeezed) == "SigmoidTransform of Normal(loc=0, scale=2)"


def test_draws_that_were_put_right_are_told(places: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(places["svi"], tmp_path / "run")
    told = {}
    for refined in ("yes", "no"):
        result = read_result(folder / "result.nc")
        result.attrs |= {"refined": refined, "refinement": "shape of the weights 0.3"}
        write_result(result, folder / "result.nc")
        told[refined] = texts(inference_section(gather(folder)))
    assert "were put right by importance sampling: shape of the weights 0.3." in told["yes"]
    assert "may be too small" not in told["yes"]
    assert "could not put it right: shape of the weights 0.3." in told["no"]
    assert "may be too small" in told["no"]


def test_priors_that_were_contradicted_and_not_touched_are_told(copied: Path) -> None:
    result = read_result(copied / "result.nc")
    posterior, prior = get_group(result, "posterior"), get_group(result, "prior")
    posterior["potential.stiffness"][:] = 1e4 + posterior["potential.stiffness"]
    count = posterior.sizes["draw"]
    posterior["initial_velocity"][:] = 1.3 * np.stack([prior["initial_velocity"].values[0, :count]] * 2)
    write_result(result, copied / "result.nc")
    told = {f.level: f.text for f in posterior_section(gather(copied)).findings if f.level != "learned"}
    assert told["warning"].startswith(
        "The posterior of potential.stiffness lies in the far tail of the prior"
    )
    assert "The data say little about initial_velocity[0, q]" in told["limit"]
    assert "noise_scale" not in told["limit"]


# Verdicts


def test_a_falling_loss_is_told_from_a_flat_one() -> None:
    noise = np.random.default_rng(0).normal(size=1000)
    assert _judge(100 + noise, False)[1]
    told, settled = _judge(100 + noise - 0.05 * np.arange(1000), False)
    assert not settled
    assert re.search(r"fell by (4\.\d|5|5\.\d) ±", told)  # 5 nats from one tenth to the next
    assert _judge(100 + noise - 0.05 * np.arange(1000), True)[1]
    assert _judge(np.zeros(0), False) == ("", True)
    assert not _judge(np.ones(30), False)[1]


def test_memory_of_residuals() -> None:
    rng = np.random.default_rng(1)
    white = rng.normal(size=(2, 4000, 1))
    slow = np.zeros_like(white)
    for t in range(1, 4000):
        slow[:, t] = 0.8 * slow[:, t - 1] + 0.6 * white[:, t]
    assert abs(_memory(white)) < 0.05
    assert _memory(slow) == pytest.approx(0.8, abs=0.03)
    assert math.isnan(_memory(white[:, :4]))


def test_transforms_of_draws_that_are_right_are_uniform(places: dict[str, Path]) -> None:
    material = gather(places["nuts"])
    constants = get_group(material.forecast, "predictions_constant_data")
    draws = get_group(material.forecast, "predictions")["obs"].values[0]
    measured = constants["measured"].values
    found = _transforms(material)
    held_out = np.isfinite(measured) & ~constants["in_sample"].values[..., None]
    assert found.shape == (held_out.sum(),)
    np.testing.assert_allclose(found, (draws[:, held_out] < measured[held_out]).mean(0))


# Text


def test_numbers() -> None:
    assert rounded(9.81234, 0.2) == "9.812"
    assert rounded(-2.0, 30.0) == "-2.0"
    assert rounded(1.5, 0.0) == "1.5"
    assert interval(9.612, 10.02) == "9.61 to 10.02"
    assert number(math.nan) == "–"
    assert (percent(0.9), percent(0.0123), percent(1.0)) == ("90 %", "1.2 %", "100 %")
    assert (counted(1, "draw"), counted(2000, "draw")) == ("1 draw", "2,000 draws")
    assert words_of(list("abcdefg")) == "a, b, c, d, e and 2 more"
    assert words_of(["a", "b"]) == "a and b"
    assert words_of(["a"]) == "a"


def test_equations_as_html() -> None:
    assert equation_markup("d²q_1/dt² = −ω² q_1 < x") == (
        "d²<i>q</i><sub>1</sub>/d<i>t</i>² = −<i>ω</i>² <i>q</i><sub>1</sub> &lt; <i>x</i>"
    )
    assert equation_markup("y_{nc} ~ Normal(x^2, σ_c)") == (
        "<i>y</i><sub>nc</sub> ~ Normal(<i>x</i><sup>2</sup>, <i>σ</i><sub>c</sub>)"
    )
    assert signed_sum("−k q", "", "−c v", "F") == "−k q − c v + F"
    assert Equations((), {"field": "f"}).symbol("field.network.weight_0") == "f"
    assert Equations(()).symbol("potential.network.bias_1") == "θ"
    assert Equations(()).symbol("elsewhere") == ""
