"""Imports go one way: every module of the library has a layer and imports only from lower ones."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vinppl.state

LIBRARY = Path(vinppl.state.__file__).parent
SUITE = LIBRARY.parent / "models"  # installed as vinppl.models

# The most specific entry counts. Modules of one layer may not import one another, except inside one
# package (vinppl.data imports vinppl.data.*), whose inner order Python itself keeps free of cycles.
LAYERS = {
    "vinppl.errors": 0,
    "vinppl._checks": 0,
    "vinppl.state": 1,
    "vinppl.timegrid": 1,
    "vinppl.distributions": 1,
    "vinppl.matern": 1,
    "vinppl.importance": 1,
    "vinppl.interrupts": 1,
    "vinppl.lapses": 1,
    "vinppl.equations": 1,
    "vinppl.parameters": 2,
    "vinppl.manifolds": 2,
    "vinppl.nn": 2.5,
    "vinppl.mass": 2.5,
    "vinppl.potentials": 3,
    "vinppl.forces": 3,
    "vinppl.integrators": 5,
    "vinppl.integrators.base": 4,
    "vinppl.integrators.verlet": 4.1,
    "vinppl.integrators.unstructured": 4.1,
    "vinppl.integrators.lie": 4.2,
    "vinppl.integrators.compose": 4.2,
    "vinppl.native": 5.5,
    "vinppl.rollout": 6,
    "vinppl.systems": 6,
    "vinppl.data": 6,
    "vinppl.emissions": 6,
    "vinppl.dynamics": 6.1,
    "vinppl.baselines": 6.1,
    "vinppl.encoders": 6.5,
    "vinppl.priors": 6.5,
    "vinppl.estimates": 6.5,
    "vinppl.embedding": 6.5,
    "vinppl.lyapunov": 6.5,
    "vinppl.vision": 6.55,
    "vinppl.pretraining": 6.6,
    "vinppl.draws": 6.9,
    "vinppl.discrepancy": 7,
    "vinppl.simulate": 7,
    "vinppl.render": 7.1,
    "vinppl.guides": 7,
    "vinppl.logdensity": 7,
    "vinppl.checkpoint": 8,
    "vinppl.export": 8,
    "vinppl.loading": 8,
    "vinppl.backgrounds": 7,
    "vinppl.diagnostics": 8.05,
    "vinppl.runs": 8.1,
    "vinppl.fit": 8.1,
    "vinppl.scores": 8.1,
    "vinppl.latents": 8.1,
    "vinppl.frame_scores": 8.15,
    "vinppl.trials": 8.15,
    "vinppl.posterior": 8.2,
    "vinppl.assimilation": 8.3,
    "vinppl.refinement": 8.3,
    "vinppl.film_forecast": 8.4,
    "vinppl.forecast": 8.3,
    "vinppl.periods": 8.4,
    "vinppl.growth": 8.4,
    "vinppl.calibration": 8.45,
    "vinppl.cli": 8.4,
    "vinppl.calibration.runs": 8.5,
    "vinppl.plotting": 9,
    "vinppl.testing": 9,
    "vinppl.study_plots": 9.2,
    "vinppl.film_plots": 9.1,
    "vinppl.growth_plots": 9.1,
    "vinppl.report": 9.2,
    "vinppl.calibration_plots": 9.1,
    "vinppl": 10,
    "vinppl.models": 11,
}

# Third-party packages that only some modules may import.
KEPT_TO = {
    "matplotlib": {
        "vinppl.plotting",
        "vinppl.study_plots",
        "vinppl.film_plots",
        "vinppl.growth_plots",
        "vinppl.report",
        "vinppl.calibration_plots",
    },
    "jinja2": {"vinppl.report"},
    "arviz": {"vinppl.export", "vinppl.diagnostics"},
    "llvmlite": {"vinppl.native"},
    "distributed": {"vinppl.trials"},
    "dask": {"vinppl.trials"},
    "cloudpickle": {"vinppl.trials"},
}
# Packages that a module must not import, so that it runs without them.
FORBIDDEN = {"vinppl.export": {"torch", "pyro"}}


def find_modules() -> dict[str, Path]:
    """Return every module of the library and the suite by its installed name."""
    found = {}
    for root, prefix in ((LIBRARY, "vinppl"), (SUITE, "vinppl.models")):
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join([prefix, *(part for part in parts if part != "__init__")])] = path
    return found


MODULES = find_modules()


def imports_of(path: Path, *, everywhere: bool = False) -> set[str]:
    """Return the modules a file imports at its top level, `if TYPE_CHECKING` blocks left out."""
    found: set[str] = set()

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name} has a relative import"
                assert node.module is not None
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                # `from vinppl.data import blocks` imports a module, `import Channel` a name of one.
                found.update(names & MODULES.keys() or {node.module})
            elif isinstance(node, ast.If):
                if "TYPE_CHECKING" not in ast.unparse(node.test):
                    visit(node.body)
                visit(node.orelse)
            elif isinstance(node, ast.Try):
                visit(
                    [*node.body, *node.orelse, *node.finalbody, *(s for h in node.handlers for s in h.body)]
                )
            elif everywhere and isinstance(
                node, ast.FunctionDef | ast.ClassDef | ast.With | ast.For | ast.While
            ):
                visit(node.body)

    visit(ast.parse(path.read_text(encoding="utf-8")).body)
    return found


def entry_of(module: str) -> str:
    """Return the entry of the table that covers a module: itself or its nearest listed package."""
    name = module
    while name not in LAYERS or (name == "vinppl" and module != "vinppl"):
        assert "." in name, f"{module} has no layer: add it to LAYERS"
        name = name.rpartition(".")[0]
    return name


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    entry = entry_of(module)
    for imported in sorted(imports_of(MODULES[module])):
        if imported.split(".")[0] != "vinppl":
            continue
        assert imported in MODULES, f"{module} imports {imported}, which is not a module"
        other = entry_of(imported)
        assert other == entry or LAYERS[other] < LAYERS[entry], (
            f"{module} (layer {LAYERS[entry]}) imports {imported} (layer {LAYERS[other]})"
        )


@pytest.mark.parametrize("module", MODULES)
def test_scripts_and_the_suite_are_not_imported_by_their_folder_names(module: str) -> None:
    roots = {name.split(".")[0] for name in imports_of(MODULES[module], everywhere=True)}
    assert not roots & {"models", "inference", "notebooks", "tests"}


@pytest.mark.parametrize("module", MODULES)
def test_heavy_packages_stay_where_they_belong(module: str) -> None:
    roots = {name.split(".")[0] for name in imports_of(MODULES[module], everywhere=True)}
    for package, allowed in KEPT_TO.items():
        assert package not in roots or entry_of(module) in allowed, f"{module} imports {package}"
    assert not roots & FORBIDDEN.get(module, set())


def test_every_listed_module_that_exists_is_spelt_right() -> None:
    # Modules of the design that are still to come are allowed to be missing.
    to_come = {"vinppl.simulate", "vinppl.diagnostics", "vinppl.plotting"}
    missing = {name for name in LAYERS if name not in MODULES} - to_come
    assert not missing


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports_alone(module: str) -> None:
    code = f"import warnings; warnings.simplefilter('ignore'); import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_walk_sees_what_it_should(tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nimport vinppl.state as s\nfrom vinppl.data import blocks\n"
        "if TYPE_CHECKING:\n    import hidden\n"
        "try:\n    import arviz\nexcept ImportError:\n    import spare\n"
        "def f():\n    import late\n"
    )
    expected = {"typing", "vinppl.state", "vinppl.data.blocks", "arviz", "spare"}
    assert imports_of(file) == expected
    assert imports_of(file, everywhere=True) == expected | {"late"}
