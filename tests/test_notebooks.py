"""Every notebook runs from top to bottom, holds no outputs and no long functions."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.rglob("*.ipynb"))  # all there are: none can be forgotten
LONGEST_FUNCTION = 15  # lines
TIMEOUT = 240  # seconds for one cell; a quick notebook takes some twenty on one free core

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> Iterator[nbformat.NotebookNode]:
    """Yield the code cells of a notebook."""
    yield from (cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 2


@notebooks
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    nbformat.validate(nbformat.read(path, as_version=4))
    for cell in code_cells(path):
        assert cell.outputs == [], cell.source
        assert cell.execution_count is None, cell.source
    assert nbformat.read(path, as_version=4).metadata.kernelspec.name == "python3"


@notebooks
def test_a_notebook_defines_no_long_functions_and_no_classes(path: Path) -> None:
    for cell in code_cells(path):
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.ClassDef), node.name
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < LONGEST_FUNCTION, node.name


@notebooks
def test_a_notebook_names_no_place_of_the_author(path: Path) -> None:
    text = path.read_text()
    assert not [place for place in (str(FOLDER.parent), "/home/", "/Users/") if place in text]


@notebooks
# The Jupyter client's libraries warn about one another; the kernel has filters of its own.
@pytest.mark.filterwarnings("ignore")
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    for name, value in {"VINPPL_QUICK": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    notebook = nbformat.read(path, as_version=4)
    # In an empty folder: a notebook brings its own data.
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources=resources).execute()
    assert list(tmp_path.iterdir()) == []
