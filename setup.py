"""Packaging: `models/` is installed as `vinppl.models`; `inference/` is scripts and is not installed."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"

TEST = [
    "coverage>=7",
    "hypothesis>=6",
    "ipykernel>=6",
    "jupytext>=1.16",
    "mypy>=1.10",
    "nbclient>=0.10",
    "pytest>=8",
    "pytest-cov>=5",
    "pytest-xdist>=3.5",
    "ruff>=0.6",
]
PARQUET = ["pyarrow>=15"]
VIDEO = ["imageio-ffmpeg>=0.4.9"]  # brings the ffmpeg program
BENCH = ["jax>=0.4.30", "numpyro>=0.16"]  # peers that tests/bench compares with

setup(
    name="vinppl",
    version="0.1.0",
    description="Probabilistic models of mechanical systems with variational integrators, in Pyro",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="The vinppl developers",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["vinppl", "vinppl.*"]), "vinppl.models"],
    package_dir={"vinppl.models": "models"},
    package_data={"vinppl": ["py.typed"], "vinppl.report": ["*.jinja"]},
    install_requires=[
        "arviz>=0.20",
        "distributed>=2024.8",
        "h5netcdf>=1.3",
        "h5py>=3.10",
        "jinja2>=3.1",
        "llvmlite>=0.45",
        "markupsafe>=2.1",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "nutpie>=0.16",
        "pandas>=2.1",
        "pillow>=10",
        "pyro-ppl>=1.9",
        "scipy>=1.11",
        "scoringrules>=0.7",
        "torch>=2.4",
        "tqdm>=4.66",
        "tyro>=0.9",
        "xarray>=2025.9",
    ],
    extras_require={
        "test": [*TEST, *PARQUET, *VIDEO],
        "parquet": PARQUET,
        "video": VIDEO,
        "bench": BENCH,
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Physics",
        "Typing :: Typed",
    ],
)
