"""Climbing a log density, and the shape of its top."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from vinppl.logdensity import LogDensity

__all__ = ["ascend_along", "ascend_part", "climb", "is_stationary", "laplace_covariance", "whitened"]


def _ascend(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, max_iterations: int
) -> Tensor:
    """Return the end of an L-BFGS ascent with the gradient given, never a worse point."""
    best = (-math.inf, start.detach().clone())

    def loss(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        nonlocal best
        if not np.isfinite(x).all():  # where a line search without a finite value may end
            return 1e10, np.zeros_like(x)
        u = torch.from_numpy(x).to(start)
        with pyro.validation_enabled(False):  # far steps may underflow to the edge of a support
            value, gradient = (z.detach() for z in function(u))
        if not bool(torch.isfinite(value)) or not bool(torch.isfinite(gradient).all()):
            return 1e10, np.zeros_like(x)
        if float(value) > best[0]:
            best = (float(value), u.clone())
        return -float(value), -gradient.cpu().double().numpy()

    minimize(
        loss,
        start.detach().cpu().double().numpy(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iterations, "maxcor": 20, "ftol": 1e-12, "gtol": 1e-4},
    )
    return best[1]


def ascend_part(density: LogDensity, start: Tensor, places: Tensor, max_iterations: int) -> Tensor:
    """Return the end of an ascent from `start` along some of the coordinates."""

    def part(x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = density.value_and_gradient(start.index_copy(0, places, x))
        return value, gradient[places]

    return start.index_copy(0, places, _ascend(part, start[places], max_iterations))


def ascend_along(density: LogDensity, centre: Tensor, directions: Tensor, max_iterations: int) -> Tensor:
    """Return the end of an ascent from `centre` in the span of some directions, the columns."""

    def along(x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = density.value_and_gradient(centre + directions @ x)
        return value, directions.mT @ gradient

    start = directions.new_zeros(directions.shape[1])
    return centre + directions @ _ascend(along, start, max_iterations)


def climb(
    function: Callable[[Tensor], Tensor], start: Tensor, max_iterations: int, *, extra: Sequence[Tensor] = ()
) -> Tensor:
    """Return the end of an L-BFGS ascent, never a worse point; `extra` parameters climb along in place."""
    u = start.detach().clone().requires_grad_(True)
    moving = [u, *extra]
    optimiser = torch.optim.LBFGS(
        moving,
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=1e-3,
        tolerance_change=1e-9,
        history_size=100,
        line_search_fn="strong_wolfe",
    )
    best = (torch.inf, [x.detach().clone() for x in moving])

    def closure() -> Tensor:
        nonlocal best
        optimiser.zero_grad()
        loss = -function(u)
        if not bool(torch.isfinite(loss)):
            for x in moving:
                x.grad = torch.zeros_like(x)
            return torch.full_like(loss, 1e10)
        loss.backward()
        if loss.item() < best[0]:
            best = (loss.item(), [x.detach().clone() for x in moving])
        return loss

    optimiser.step(closure)
    optimiser.zero_grad()
    with torch.no_grad():
        for x, value in zip(moving, best[1], strict=True):
            x.copy_(value)
    return best[1][0]


def laplace_covariance(density: LogDensity, point: Tensor, *, relative_step: float = 1e-4) -> Tensor | None:
    """Return the inverse of minus the Hessian of the log density at `point`, `(size, size)`.

    The Hessian comes from central differences of the gradient, 2 size evaluations, with steps a
    tenth of the first estimate of each standard deviation. Directions of negative curvature (the
    point is no mode) count with its size. The length of each principal direction is then set by how
    far the density falls along it, so that it holds at the scale of the posterior.

    Returns:
        A positive definite matrix, or `None` if the Hessian is not finite.
    """
    step = relative_step * point.abs().clamp_min(1.0)
    precision = _precision(density, point, step)
    refined = 0.1 * precision.diagonal().abs().clamp_min(1.0).rsqrt()
    if bool((refined < step).any()) and bool(torch.isfinite(precision).all()):
        precision = _precision(density, point, torch.minimum(step, refined))
    if not bool(torch.isfinite(precision).all()):
        return None
    scale = precision.diagonal().abs().clamp_min(1e-2).sqrt()
    curvature, axes = torch.linalg.eigh(precision / scale.outer(scale))
    directions = axes / curvature.abs().clamp_min(1e-4).sqrt() / scale.unsqueeze(-1)  # columns of one sd
    for _ in range(2):
        directions = directions * _stretch(density, point, directions)
    covariance = directions @ directions.mT
    return 0.5 * (covariance + covariance.mT)


def _stretch(density: LogDensity, point: Tensor, directions: Tensor) -> Tensor:
    """Return how much longer each direction should be for the density to fall by one half along it.

    One half is what a normal falls by over one standard deviation. A posterior that is curved, or
    whose curvature at the mode is that of a cusp or a plateau, is matched at its own scale.
    """
    factors = []
    with torch.no_grad():
        top = density(point)
        for direction in directions.mT:
            fall = float(top - 0.5 * (density(point + direction) + density(point - direction)))
            longer = (0.5 / max(fall, 0.125)) ** 0.5 if math.isfinite(fall) else 0.0
            factors.append(max(0.05, longer))
    return torch.tensor(factors, dtype=point.dtype, device=point.device)


def _precision(density: LogDensity, point: Tensor, step: Tensor) -> Tensor:
    """Return minus the Hessian by central differences."""
    rows = []
    for i in range(point.numel()):
        shift = torch.zeros_like(point)
        shift[i] = step[i]
        _, above = density.value_and_gradient(point + shift)
        _, below = density.value_and_gradient(point - shift)
        rows.append((above - below) / (2 * step[i]))
    hessian = torch.stack(rows)
    return -0.5 * (hessian + hessian.mT)


def whitened(covariance: Tensor, free: Tensor) -> Tensor:
    """Return directions, as columns, that whiten the free coordinates given the others."""
    size = len(covariance)
    if len(free) == size:
        return torch.linalg.cholesky(covariance)
    precision = torch.cholesky_inverse(torch.linalg.cholesky(covariance))[free][:, free]
    directions = covariance.new_zeros(size, len(free))
    directions[free] = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(precision)))
    return directions


def is_stationary(density: LogDensity, point: Tensor, covariance: Tensor | None, free: Tensor) -> bool:
    """Return whether a Newton step along the free coordinates would move by less than a fifth of a posterior
    sd anywhere."""
    _, gradient = density.value_and_gradient(point)
    if covariance is None:
        return bool(gradient[free].abs().amax() < 1.0)
    directions = whitened(covariance, free)
    step = directions @ (directions.mT @ gradient)
    return bool((step.square() <= 0.2**2 * covariance.diagonal()).all())
