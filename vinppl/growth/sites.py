"""Which part of the uncertainty a latent site belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vinppl._checks import require, require_choices

__all__ = ["PARTS", "in_order", "part_of", "parts_of"]

PARTS: dict[str, tuple[str, ...]] = {
    "initial_state": ("initial",),
    "mass": ("mass",),
    "potential": ("potential",),
    "dynamics": ("network", "field", "dynamics"),
    "forces": ("damping", "drag", "friction", "drive", "force", "forces"),
    "discrepancy": ("discrepancy", "correlation_time"),
    "observation": ("noise", "degrees_of_freedom", "velocity_gain"),
}
"""Parts of the uncertainty, by the first words of the names of their sites.

`dynamics` is a law of motion that is not made of a potential and forces; `discrepancy` is what a model says
about its own errors, noise with memory included; `observation` the measuring. All other sites are `other`.
"""


def part_of(site: str) -> str:
    """Return the part that a site belongs to by its name.

    Example:
        >>> part_of("potential.stiffness"), part_of("sensor_delay")
        ('potential', 'other')
    """
    for part, words in PARTS.items():
        if site in words or site.startswith(tuple(f"{word}{mark}" for word in words for mark in "._")):
            return part
    return "other"


def parts_of(sites: Sequence[str], given: Mapping[str, Sequence[str]] | None = None) -> dict[str, list[str]]:
    """Return the sites of each part, in the order of `PARTS`.

    Args:
        sites: latent sites of a model.
        given: sites of parts of the caller's own; the others go by their names.

    Raises:
        ValueError: if a given site is none of the model's, or is given twice.
    """
    given = given or {}
    listed = [site for chosen in given.values() for site in chosen]
    require_choices("sites of parts", listed, sites)
    require(len(set(listed)) == len(listed), "a site must belong to one part", ", ".join(sorted(listed)))
    rest = [site for site in sites if site not in listed]
    found = {part: [site for site in rest if part_of(site) == part] for part in (*PARTS, "other")}
    for part, chosen in given.items():
        found[part] = [*found.get(part, []), *chosen]
    return {part: chosen for part, chosen in found.items() if chosen}


def in_order(parts: Sequence[str]) -> list[str]:
    """Return parts once each, in the order of `PARTS`, a caller's own before what is not about the motion."""
    names = list(PARTS)
    rank = {name: (names.index(name) if name in names else names.index("forces") + 0.5) for name in parts}
    return sorted(rank, key=lambda name: rank[name])
