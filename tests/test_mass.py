"""Inertia matrices: every structure against dense algebra, particles, and bad input."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from vinppl.dynamics import VIN
from vinppl.mass import Diagonal, Full, MassSpec, Scalar, bind_mass
from vinppl.parameters import Learned
from vinppl.potentials import Harmonic

DIM = 3
FULL = torch.tensor([[2.0, 0.3, 0.1], [0.3, 1.5, -0.2], [0.1, -0.2, 1.0]], dtype=torch.float64)
CASES: dict[str, tuple[MassSpec, Tensor, Tensor]] = {
    "unit": (Scalar(1.0), torch.tensor(1.0, dtype=torch.float64), torch.eye(DIM, dtype=torch.float64)),
    "scalar": (
        Scalar(2.5),
        torch.tensor(2.5, dtype=torch.float64),
        2.5 * torch.eye(DIM, dtype=torch.float64),
    ),
    "diagonal": (Diagonal(FULL.diagonal()), FULL.diagonal(), FULL.diagonal().diag()),
    "full": (Full(FULL), FULL, FULL),
}
every_case = pytest.mark.parametrize(("spec", "value", "matrix"), CASES.values(), ids=CASES)


@every_case
@pytest.mark.parametrize("batch", [(), (4,), (2, 4)])
def test_against_dense_algebra(spec: MassSpec, value: Tensor, matrix: Tensor, batch: tuple[int, ...]) -> None:
    mass = bind_mass(value, spec)
    x, shift = torch.randn(*batch, DIM), torch.rand(*batch, DIM)
    torch.testing.assert_close(mass.apply(x), x @ matrix, rtol=0, atol=1e-14)
    torch.testing.assert_close(mass.solve(x), x @ matrix.inverse(), rtol=0, atol=1e-14)
    shifted = torch.linalg.solve(matrix + torch.diag_embed(shift), x)
    torch.testing.assert_close(mass.solve_shifted(x, shift), shifted, rtol=0, atol=1e-14)


@every_case
def test_a_shared_shift_stands_on_the_diagonal_only(spec: MassSpec, value: Tensor, matrix: Tensor) -> None:
    x, shift = torch.randn(4, DIM), torch.tensor([0.7])
    expected = torch.linalg.solve(matrix + 0.7 * torch.eye(DIM), x.T).T
    solved = bind_mass(value, spec).solve_shifted(x, shift)
    torch.testing.assert_close(solved, expected, rtol=0, atol=1e-14)


@every_case
@pytest.mark.parametrize("state_batch", [(3, 5), (5,)])
def test_particle_dimensions(
    spec: MassSpec, value: Tensor, matrix: Tensor, state_batch: tuple[int, ...]
) -> None:
    if not isinstance(spec.value, Tensor) and spec.value == 1.0:
        pytest.skip("a constant has no particles")
    factors = torch.tensor([1.0, 2.0, 0.5])  # three particles, singleton for the trajectory plate
    values = factors.reshape(3, 1, *(1,) * value.ndim) * value
    mass = bind_mass(values, spec)
    x, shift = torch.randn(*state_batch, DIM), torch.rand(3, 1, 1)
    for i, factor in enumerate(factors):
        one = bind_mass(factor * value, spec)
        xi = x[i] if len(state_batch) == 2 else x
        torch.testing.assert_close(mass.apply(x)[i], one.apply(xi), rtol=0, atol=1e-14)
        torch.testing.assert_close(mass.solve(x)[i], one.solve(xi), rtol=0, atol=1e-14)
        solved = mass.solve_shifted(x, shift)[i]
        torch.testing.assert_close(solved, one.solve_shifted(xi, shift[i]), rtol=0, atol=1e-14)


def test_capabilities() -> None:
    flags = {name: bind_mass(value, spec)[-2:] for name, (spec, value, _) in CASES.items()}
    assert flags == {
        "unit": (True, True),
        "scalar": (False, True),
        "diagonal": (False, True),
        "full": (False, False),
    }
    learned_at_one = bind_mass(torch.tensor(1.0), Scalar(Learned(1.0)))
    assert not learned_at_one.is_unit


@pytest.mark.filterwarnings("ignore:Singular sample detected")  # torch 2.13 says so of every Wishart draw
@pytest.mark.parametrize(
    "spec",
    [
        Scalar(Learned(2.0)),
        Diagonal(Learned(2.0)),
        Full(Learned(FULL)),
        Full(dist.Wishart(torch.tensor(5.0), FULL)),
    ],
    ids=["scalar", "diagonal", "full", "wishart"],
)
def test_a_mass_that_is_not_constant_stays_positive_definite(spec: MassSpec) -> None:
    vin = VIN(Harmonic(dim=DIM), mass=spec)
    value = vin.mass
    shapes = {"scalar": (), "diagonal": (DIM,), "full": (DIM, DIM)}
    assert value.shape == shapes[spec.structure]
    if isinstance(spec.value, Learned):
        torch.testing.assert_close(value.detach(), torch.as_tensor(spec.value.init).expand(value.shape))
        value.sum().backward()
        assert all(bool(p.grad.abs().sum() > 0) for p in vin.parameters() if p.grad is not None)
    eigenvalues = torch.linalg.eigvalsh(value.detach()) if spec.structure == "full" else value.detach()
    assert bool((eigenvalues > 0).all())


def test_bad_masses() -> None:
    with pytest.raises(ValueError, match=r"a full mass must have shape \(3, 3\)"):
        VIN(Harmonic(dim=DIM), mass=Full(torch.eye(2)))
    with pytest.raises(ValueError, match="mass must lie in its support"):
        VIN(Harmonic(dim=DIM), mass=-1.0)
    with pytest.raises(ValueError, match=r"mass must have shape \(3,\)"):
        VIN(Harmonic(dim=DIM), mass=Diagonal(torch.ones(2)))
