"""The equations of a model as text, for people to read beside its results.

A model says by a method `equations` what it assumes with the options that it was built with. Lines are plain
Unicode in which `_x` or `_{..}` lowers and `^x` or `^{..}` raises what follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "DISCREPANCY_LINE",
    "INITIAL_LINE",
    "SYMBOLS",
    "Equations",
    "measurement_lines",
    "pixel_lines",
    "signed_sum",
]

SYMBOLS: dict[str, str] = {
    "initial_position": "q_{0n}",
    "initial_velocity": "v_{0n}",
    "mass": "m",
    "damping.coefficient": "c",
    "drag.coefficient": "d",
    "drive.gain": "G",
    "drive.offset": "F_0",
    "discrepancy.amplitude": "A",
    "discrepancy.correlation_time": "ℓ",
    "discrepancy.innovations": "d_n",
    "discrepancy.knots": "d_n",
    "noise_scale": "σ_c",
    "correlation_time": "τ_c",
    "degrees_of_freedom": "ν",
    "velocity_gain": "γ",
    "potential.network": "θ",
    "network": "θ",
    "dynamics.network": "θ",
}
"""Symbols of the sites that models share. The name of a network stands for all of its weights."""

INITIAL_LINE = "q_n(0) = q_{0n},  v_n(0) = v_{0n} in every trajectory n"

DISCREPANCY_LINE = "Cov[d_n(s), d_n(t)] = A² (1 + r) exp(−r),  r = √3 |s − t| / ℓ: an unknown force"


@dataclass(frozen=True)
class Equations:
    """What a model assumes.

    Attributes:
        lines: the law of motion, the initial state and how measurements scatter, an equation each.
        symbols: of the sites that only this model has; `SYMBOLS` has the others.
    """

    lines: tuple[str, ...]
    symbols: Mapping[str, str] = field(default_factory=dict)

    def symbol(self, site: str) -> str:
        """Return the symbol of a site, that of the network for a network's weight; empty if it has none."""
        known = {**SYMBOLS, **self.symbols}
        parts = site.split(".")
        names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        return next((known[name] for name in names if name in known), "")


def signed_sum(*terms: str) -> str:
    """Return terms as a sum: those that begin with a minus are subtracted, empty ones left out.

    Example:
        >>> signed_sum("−k q", "", "−c v", "F")
        '−k q − c v + F'
    """
    first, *rest = [term for term in terms if term]
    return first + "".join(f" − {term[1:]}" if term.startswith("−") else f" + {term}" for term in rest)


def measurement_lines(
    noise: Literal["gaussian", "student_t", "ar1"],
    *,
    gain: bool = False,
    scale: str = "σ_c",
) -> tuple[str, ...]:
    """Return how channel c of trajectory n scatters around its state; `Normal` has a standard deviation.

    Args:
        noise: as in `vinppl.emissions.make_emission`.
        gain: whether velocities are measured up to a factor.
        scale: symbol of the standard deviation.
    """
    state = f"x_{{nc}}(t) = q_n(t) or {'γ ' if gain else ''}v_n(t)"
    if noise == "ar1":
        return (
            f"y_{{nc}}(t) = x_{{nc}}(t) + r_{{nc}}(t),  {state}",
            f"r_{{nc}} normal, Cov[r_{{nc}}(s), r_{{nc}}(t)] = {scale}² exp(−|s − t| / τ_c)",
        )
    law = f"StudentT(ν, x_{{nc}}(t), {scale})" if noise == "student_t" else f"Normal(x_{{nc}}(t), {scale})"
    return (f"y_{{nc}}(t) ~ {law},  {state}",)


def pixel_lines(position: str, *, grey: bool) -> tuple[str, ...]:
    """Return how pixels scatter around what the decoder g_φ draws at a latent `position`."""
    if grey:
        return (f"y_t ~ Normal(g_φ({position}), σ) in every pixel of frame t",)
    return (f"y_t ~ Bernoulli(g_φ({position})) in every pixel of frame t",)
