"""Jacobi elliptic functions that stay accurate up to the separatrix.

All functions take the complementary parameter m₁ = 1 - m in [0, 1] instead of
m: near the separatrix m rounds to one and every digit of the period is in m₁.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ellipkm1, elliprf

from vinppl.systems.base import Array

# Landen's transformation converges quadratically in either direction. From m₁ = 0.3, descending takes the
# modulus below 1e-17 in five steps, and ascending takes k' there in five.
_STEEP = 0.3
_NUM_LANDEN = 5


def incomplete_first(sin_phi: ArrayLike, cos_phi: ArrayLike, m1: ArrayLike) -> Array:
    """Return F(φ | m), the elliptic integral of the first kind, for -π < φ <= π.

    Carlson's form F = sin φ R_F(cos²φ, 1 - m sin²φ, 1), with
    1 - m sin²φ = cos²φ + m₁ sin²φ free of cancellation; beyond a quarter turn
    by F(π - φ) = 2K - F(φ).

    Args:
        sin_phi: sine of the amplitude φ.
        cos_phi: its cosine.
        m1: complementary parameter, broadcastable. Where it is zero, only |φ| < π/2 is finite.

    References:
        NIST Digital Library of Mathematical Functions, 19.25.5.
    """
    s, c, m1 = (np.asarray(x, dtype=np.float64) for x in (sin_phi, cos_phi, m1))
    near = s * elliprf(c * c, c * c + m1 * s * s, 1.0)
    far = np.copysign(2.0 * ellipkm1(m1), s) - near
    return np.asarray(np.where(c >= 0.0, near, far))


def jacobi(u: ArrayLike, m1: ArrayLike) -> tuple[Array, Array, Array, Array]:
    """Return sn, cn, dn and the amplitude am of u, counted over all turns.

    The argument is reduced by half periods to |u| <= K. Past K/2 it is mirrored
    at the quarter period, sn(K - u) = cd u, cn(K - u) = k' sd u, dn(K - u) = k' nd u,
    so that small cn and dn keep their relative accuracy.

    Args:
        u: argument.
        m1: complementary parameter in [0, 1], broadcastable.

    References:
        NIST Digital Library of Mathematical Functions, 22.4 and 22.20(ii).
    """
    u, m1 = np.broadcast_arrays(np.asarray(u, dtype=np.float64), np.asarray(m1, dtype=np.float64))
    flat = m1 == 0.0
    safe = np.where(flat, 1.0, m1)
    K = ellipkm1(safe)
    turns = np.where(flat, 0.0, np.round(u / (2.0 * K)))
    rest = np.abs(u - 2.0 * K * turns)
    mirrored = rest > 0.5 * K
    s, c = _first_half(np.where(mirrored, np.abs(K - rest), rest), safe)
    d = np.sqrt(c * c + safe * s * s)
    k1 = np.sqrt(safe)
    past = np.where(rest > K, -1.0, 1.0)  # a reduced argument may exceed K by rounding
    sn = np.where(mirrored, c / d, s)
    cn = np.where(mirrored, past * k1 * s / d, c)
    dn = np.where(mirrored, k1 / d, d)
    with np.errstate(over="ignore"):
        sech = 1.0 / np.cosh(np.where(flat, u, 0.0))
    direction = np.where(u - 2.0 * K * turns < 0.0, -1.0, 1.0)
    sn = np.where(flat, np.tanh(u), direction * sn)
    cn, dn = np.where(flat, sech, cn), np.where(flat, sech, dn)
    am = np.pi * turns + np.arctan2(sn, cn)
    sign = np.where(turns % 2 == 0, 1.0, -1.0)
    return sign * sn, sign * cn, dn, am


def _first_half(u: Array, m1: Array) -> tuple[Array, Array]:
    """Return sn and cn for 0 <= u <= K/2 by Landen transformations towards the nearer limit."""
    steep = m1 < _STEEP
    falling = _descend(np.where(steep, 0.0, u), np.where(steep, 1.0, m1))
    rising = _ascend(np.where(steep, u, 0.0), np.where(steep, m1, 0.0))
    sn, cn = (np.where(steep, x, y) for x, y in zip(rising, falling, strict=True))
    return sn, cn


def _descend(u: Array, m1: Array) -> tuple[Array, Array]:
    """Return sn and cn by descending to the circular functions.

    With the arithmetic-geometric mean (a, b) of (1, k') and c = (a - b) / 2, the
    phases obey φ_N = 2^N a_N u and sin(2 φ_{n-1} - φ_n) = (c_n / a_n) sin φ_n.
    """
    a, b = np.ones_like(u), np.sqrt(m1)
    ratios: list[Array] = []
    for _ in range(_NUM_LANDEN):
        c, a, b = 0.5 * (a - b), 0.5 * (a + b), np.sqrt(a * b)
        ratios.append(c / a)
    phi = np.ldexp(a * u, len(ratios))
    for ratio in reversed(ratios):
        phi = 0.5 * (phi + np.arcsin(ratio * np.sin(phi)))
    return np.sin(phi), np.cos(phi)


def _ascend(u: Array, m1: Array) -> tuple[Array, Array]:
    """Return sn and cn by ascending to the hyperbolic functions.

    One step leads to k' -> r = (1 - k) / (1 + k), u -> u / (1 + r), and back by
    sn = (1 + r) sn cn / dn, cn = (dn² - r) / ((1 - r) dn), dn = (dn² + r) / ((1 + r) dn).
    (Descending would divide small numbers by cancelling ones here.)
    """
    r = np.sqrt(m1)
    moduli: list[Array] = []
    for _ in range(_NUM_LANDEN):
        r = (r / (1.0 + np.sqrt((1.0 - r) * (1.0 + r)))) ** 2
        moduli.append(r)
        u = u / (1.0 + r)
    sn, cn = np.tanh(u), 1.0 / np.cosh(u)
    dn = cn
    for r in reversed(moduli):
        sn, cn, dn = (
            (1.0 + r) * sn * cn / dn,
            (dn * dn - r) / ((1.0 - r) * dn),
            (dn * dn + r) / ((1.0 + r) * dn),
        )
    return sn, cn
