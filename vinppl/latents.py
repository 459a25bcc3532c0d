"""What a learned state space has to do with the true one: scores of latent coordinates and flows.

A latent coordinate is known up to what pictures do not show: its unit, its zero and its sign. The measures
here either ignore those (`circular_correlation`, `symetric`) or remove them (`align`, `straightening`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from torch import Tensor

from vinppl._checks import require
from vinppl.manifolds import Manifold

__all__ = [
    "Alignment",
    "SyMetric",
    "align",
    "circular_correlation",
    "log_volume_change",
    "straightening",
    "symetric",
]

Array = NDArray[Any]


def circular_correlation(latent: ArrayLike, angle: ArrayLike, *, uniform: bool = False) -> float:
    """Return the correlation of two angles, sum sin(a - a0) sin(b - b0) / sqrt(sum sin^2 sum sin^2).

    a0 and b0 are the mean directions. It is 1 if the angles differ by a constant and -1 if one is the
    mirror image of the other, which pictures cannot tell apart: take its absolute value. Revolutions do
    not matter, so that angles may be unwrapped; an angle that goes round twice while the other goes
    round once is uncorrelated with it.

    Args:
        latent: radians, any shape.
        angle: radians, the same shape.
        uniform: for angles all round the circle, which have no mean direction worth its name: the
            numerator is then half of |sum exp(i (a - b))| - |sum exp(i (a + b))|, which is the same for
            the best choice of directions.

    Returns:
        From -1 to 1; NaN if one of the angles is constant.

    Raises:
        ValueError: if the shapes differ.

    References:
        Jammalamadaka, SenGupta: Topics in circular statistics. World Scientific (2001), section 8.2.
    """
    a, b = _pair(latent, angle)
    sin_a, sin_b = (np.sin(x - np.angle(np.exp(1j * x).sum())) for x in (a, b))
    size = math.sqrt(float((sin_a**2).sum() * (sin_b**2).sum()))
    if size < 1e-12 * a.size:
        return math.nan
    shared = float((sin_a * sin_b).sum())
    if uniform:
        shared = 0.5 * float(abs(np.exp(1j * (a - b)).sum()) - abs(np.exp(1j * (a + b)).sum()))
    return shared / size


class Alignment(NamedTuple):
    """A latent coordinate in the coordinates of the truth, offset + scale * latent.

    Attributes:
        values: the coordinate so moved, of its own shape; angles count revolutions as the latent did.
        scale: by which velocities are to be multiplied too; 1 or -1 for an angle.
        offset: in the unit of the truth.
        error: root mean square difference, along the shorter way round for an angle.
    """

    values: Array
    scale: float
    offset: float
    error: float


def align(latent: ArrayLike, truth: ArrayLike, *, circle: bool = False) -> Alignment:
    """Return the affine map (of angles: the rotation or reflection) of a latent nearest to the truth.

    On lines nearest is by least squares, on circles by the mean cosine of the difference.

    Args:
        latent: one coordinate, any shape.
        truth: the true coordinate, the same shape, in its own unit; radians for an angle.
        circle: whether both are angles.

    Raises:
        ValueError: if the shapes differ, or the latent is constant on a line.
    """
    x, y = _pair(latent, truth)
    shape = np.shape(latent)
    if not circle:
        spread = float(((x - x.mean()) ** 2).sum())
        require(spread > 0, "latent must not be constant", "no variation")
        scale = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
        offset = float(y.mean() - scale * x.mean())
        moved = offset + scale * x
        return Alignment(moved.reshape(shape), scale, offset, float(np.sqrt(((moved - y) ** 2).mean())))
    sums = {sign: np.exp(1j * (y - sign * x)).sum() for sign in (1.0, -1.0)}
    scale = max(sums, key=lambda sign: abs(sums[sign]))
    offset = float(np.angle(sums[scale]))
    moved = offset + scale * x
    error = np.sqrt((np.angle(np.exp(1j * (moved - y))) ** 2).mean())
    return Alignment(moved.reshape(shape), scale, offset, float(error))


def straightening(
    latent: ArrayLike, truth: ArrayLike, *, circle: bool = False, num_harmonics: int = 5
) -> Callable[[ArrayLike], Array]:
    """Return the smooth map from a latent coordinate to the true one: `align`, and harmonics of the latent.

    Pictures do not show the scale along which a coordinate is read either; a coverage of the truth is to be
    judged once that is taken off. Fit it to frames of the training, which no forecast is judged by.

    Args:
        latent: one coordinate, any shape; NaNs are left out.
        truth: the true coordinate, the same shape.
        circle: whether both are angles.
        num_harmonics: harmonics of the correction, as of `Manifold.wave_numbers`.

    Returns:
        A function from latent coordinates of any shape to true ones; angles count revolutions.

    Raises:
        ValueError: as `align`.
    """
    wave_numbers = Manifold((circle,)).wave_numbers(num_harmonics)[0].numpy()

    def harmonics(q: Array) -> Array:
        phase = q[..., None] * wave_numbers
        return np.concatenate([np.ones_like(phase[..., :1]), np.sin(phase), np.cos(phase)], axis=-1)

    given, wanted = (np.asarray(a, dtype=np.float64) for a in (latent, truth))
    require(given.shape == wanted.shape, f"latent must have the shape {wanted.shape} of the truth", given)
    seen = np.isfinite(given)
    x, y = _pair(given[seen], wanted[seen])
    found = align(x, y, circle=circle)
    rest = y - found.values
    if circle:
        rest = np.angle(np.exp(1j * rest))
    design = harmonics(x)
    ridge = STIFFNESS * len(x) * np.eye(design.shape[-1])
    weights = np.linalg.solve(design.T @ design + ridge, design.T @ rest)

    def straightened(q: ArrayLike) -> Array:
        given = np.asarray(q, dtype=np.float64)
        moved: Array = found.offset + found.scale * given + harmonics(given) @ weights
        return moved

    return straightened


STIFFNESS = 1e-6
"""Coefficient of the squared weights of `straightening`, for each point: where none lies they stay small."""


class SyMetric(NamedTuple):
    """Whether latent states are the true ones in other canonical coordinates.

    Attributes:
        passed: whether r2 is at least 0.9 and deviation at most 0.05.
        r2: share of the variance of the true states that the polynomial explains, mean over them.
        deviation: of the map's Jacobian from a multiple of a symplectic one; 0 is best.
        degree: of the polynomial.
    """

    passed: bool
    r2: float
    deviation: float
    degree: int


def symetric(
    latent_states: ArrayLike, true_states: ArrayLike, *, max_degree: int = 5, num_points: int = 200
) -> SyMetric:
    """Return the SyMetric of a latent phase space: can it be mapped to the true one, and symplectically?

    A polynomial from latent to true states is fitted by the Lasso, its degree the lowest that explains 90 %
    of the variance, its penalty chosen by two-fold cross-validation. With J its Jacobian at a state and E the
    symplectic matrix, A = J E J^T equals a multiple of E for a symplectic map, so that A A^T is a multiple
    of the identity. The deviation is the mean squared entry of A A^T / c - I over states, with c the mean
    over states of the largest entry of A A^T: a common factor does not count, because pictures show
    neither the unit of a coordinate nor the mass.

    In one degree of freedom A A^T = det(J)^2 I: every linear map passes, and what is measured is whether
    all areas of phase space are stretched alike. In more, rotations that mix positions and momenta of
    different pairs pass although they are not canonical. States are standardised for the fit only.

    Args:
        latent_states: positions, then as many velocities or momenta, shape `(*shape, 2 latent_dim)`.
            Angles must not jump.
        true_states: true positions, then momenta (or velocities for unit mass), `(*shape, 2 dim)`.
        max_degree: highest degree to try.
        num_points: states at most at which the Jacobian is looked at, evenly many of those given.

    Raises:
        ValueError: if the shapes disagree, or states are not finite or fewer than ten.

    References:
        Higgins, Wirnsberger, Jaegle, Botev: SyMetric: measuring the quality of learnt Hamiltonian dynamics
        inferred from vision. NeurIPS 2021.
    """
    x, y = (np.asarray(s, dtype=np.float64) for s in (latent_states, true_states))
    for name, states in (("latent_states", x), ("true_states", y)):
        even = states.ndim >= 2 and states.shape[-1] >= 2 and states.shape[-1] % 2 == 0
        require(even, f"{name} must have shape (*shape, 2 dim)", states)
        require(bool(np.isfinite(states).all()), f"{name} must be finite", "NaN or infinity")
    require(x.shape[:-1] == y.shape[:-1], f"latent_states must have the leading shape {y.shape[:-1]}", x)
    require(max_degree >= 1 and num_points >= 1, "max_degree and num_points must be 1 or more", max_degree)
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    require(len(x) >= 10, "there must be at least ten states", len(x))
    spread, target = x.std(0), y.std(0)
    require(bool((target > 0).all()), "every true coordinate must vary", "one that does not")
    spread[spread == 0] = 1.0
    x, y = (x - x.mean(0)) / spread, (y - y.mean(0)) / target
    for degree in range(1, max_degree + 1):
        powers = _powers(x.shape[-1], degree)
        features = _monomials(x, powers)
        weights = _cross_validated_lasso(features - features.mean(0), y)
        r2 = 1 - float(((y - (features - features.mean(0)) @ weights) ** 2).mean())
        if r2 >= LEAST_R2:
            break
    chosen = np.unique(np.linspace(0, len(x) - 1, min(num_points, len(x))).round().astype(int))
    jacobian = _slopes(x[chosen], powers, weights) * target[:, None] / spread
    deviation = _symplectic_deviation(jacobian)
    return SyMetric(r2 >= LEAST_R2 and deviation <= MOST_DEVIATION, r2, deviation, degree)


LEAST_R2, MOST_DEVIATION = 0.9, 0.05
"""Thresholds of Higgins et al. (2021)."""

PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
"""Penalties of the Lasso, as theirs."""


def log_volume_change(step: Callable[[Tensor], Tensor], path: Tensor) -> Tensor:
    """Return log |det dx_t / dx_0| along a path: how much a flow has stretched the volume around it.

    Zero for ever if the flow preserves the volume, as a symplectic one does (Liouville); of a damped system
    it falls, and where it grows neighbouring forecasts part for no physical reason. By the chain rule it is
    the sum over steps of log |det| of the map of one step.

    Args:
        step: from states `(count, size)` to those one step later, each by itself, differentiable.
        path: the states along the path, `(*batch, time, size)`, evenly spaced in time.

    Returns:
        Shape `(*batch, time)`, zero at the first time; -inf where a step is singular.

    Raises:
        ValueError: if `step` returns another shape.
    """
    require(path.ndim >= 2, "path must have shape (*batch, time, size)", path)
    x = path.detach()[..., :-1, :].reshape(-1, path.shape[-1]).requires_grad_()
    with torch.enable_grad():
        following = step(x)
        require(following.shape == x.shape, f"step must return the shape {tuple(x.shape)}", following)
        # Each state by itself, so that the gradient of a sum over states holds one row for each.
        rows = [
            torch.autograd.grad(following[:, i].sum(), x, retain_graph=True)[0]
            for i in range(following.shape[-1])
        ]
    each = torch.linalg.slogdet(torch.stack(rows, dim=-2)).logabsdet.reshape(*path.shape[:-2], -1)
    return torch.cat([torch.zeros_like(path[..., :1, 0]), each.cumsum(-1)], dim=-1).detach()


# Polynomials and the Lasso


def _powers(size: int, degree: int) -> Array:
    """Return the powers of all monomials of degree 1 to `degree`, `(count, size)`."""
    found = []
    for total in range(1, degree + 1):
        for chosen in itertools.combinations_with_replacement(range(size), total):
            found.append(np.bincount(chosen, minlength=size))
    return np.array(found)


def _monomials(x: Array, powers: Array) -> Array:
    """Return their values, `(num_states, count)`."""
    return np.prod(x[:, None, :] ** powers, axis=-1)


def _slopes(x: Array, powers: Array, weights: Array) -> Array:
    """Return the Jacobian of a polynomial with weights `(count, out)`, `(num_states, out, size)`."""
    slopes = []
    for i in range(x.shape[-1]):
        lowered = powers - np.eye(x.shape[-1], dtype=int)[i]
        values = powers[:, i] * _monomials(x, lowered.clip(min=0))
        slopes.append(values @ weights)
    return np.stack(slopes, axis=-1)


def _lasso(gram: Array, moment: Array, penalty: float, start: Array) -> Array:
    """Return the minimiser of 1/2 w G w - m w + penalty |w|_1, with w the difference of positive parts."""
    count = len(moment)

    def value(parts: Array) -> tuple[float, Array]:
        w = parts[:count] - parts[count:]
        slope = gram @ w
        gradient = slope - moment
        return float(0.5 * w @ slope - moment @ w + penalty * parts.sum()), np.concatenate(
            [gradient + penalty, penalty - gradient]
        )

    options = {"maxiter": 1000, "maxfun": 3000, "ftol": 0.0, "gtol": 1e-10}
    parts = np.concatenate([start.clip(min=0), (-start).clip(min=0)])
    bounds = [(0, None)] * (2 * count)
    for _ in range(5):  # anew from where a line search gave up
        parts = minimize(value, parts, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
        # At the minimum each part is zero, or its slope is.
        if np.abs(np.minimum(parts, value(parts)[1])).max() < 1e-8:
            break
    return np.asarray(parts[:count] - parts[count:])


def _lasso_path(features: Array, y: Array) -> list[Array]:
    """Return weights `(count, out)` for each of the penalties, each starting from the one before."""
    gram, moments = features.T @ features / len(y), features.T @ y / len(y)
    paths = []
    for moment in moments.T:
        weights = [np.zeros(len(moment))]
        for penalty in PENALTIES:
            weights.append(_lasso(gram, moment, penalty, weights[-1]))
        paths.append(weights[1:])
    return [np.stack(columns, axis=-1) for columns in zip(*paths, strict=True)]


def _cross_validated_lasso(features: Array, y: Array) -> Array:
    """Return the weights for the penalty with the least error on every other state, in turn."""
    errors = np.zeros(len(PENALTIES))
    for part in (0, 1):
        train, test = slice(part, None, 2), slice(1 - part, None, 2)
        for k, weights in enumerate(_lasso_path(features[train], y[train])):
            errors[k] += ((y[test] - features[test] @ weights) ** 2).mean()
    return _lasso_path(features, y)[int(errors.argmin())]


def _symplectic_deviation(jacobian: Array) -> float:
    """Return the mean squared deviation of A A^T from a multiple of I, A = J E J^T."""
    half = jacobian.shape[-1] // 2
    symplectic = np.kron(np.array([[0.0, -1.0], [1.0, 0.0]]), np.eye(half))
    a = jacobian @ symplectic @ jacobian.mT
    product = a @ a.mT
    size = float(np.abs(product).max((-2, -1)).mean())
    if size == 0:
        return math.inf
    return float(((product / size - np.eye(product.shape[-1])) ** 2).mean())


def _pair(latent: ArrayLike, truth: ArrayLike) -> tuple[Array, Array]:
    x, y = (np.asarray(values, dtype=np.float64) for values in (latent, truth))
    require(x.shape == y.shape and x.size >= 2, f"latent must have the shape {y.shape} of the truth", x)
    require(bool(np.isfinite(x).all() and np.isfinite(y).all()), "both must be finite", "NaN or infinity")
    return x.ravel(), y.ravel()
