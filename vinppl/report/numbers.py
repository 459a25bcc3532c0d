"""Numbers as text: as many digits as their uncertainty leaves meaningful."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["counted", "interval", "number", "percent", "rounded", "with_unit", "words_of"]


def number(value: float, digits: int = 3) -> str:
    """Return a number with that many significant digits; an en dash for one that is not known."""
    return "–" if math.isnan(value) else f"{value:.{digits}g}"


def rounded(value: float, spread: float) -> str:
    """Return a number rounded to a hundredth of its spread or finer.

    Example:
        >>> rounded(9.81234, 0.2), rounded(123456.0, 0.0)
        ('9.812', '1.235e+05')
    """
    if not (math.isfinite(value) and math.isfinite(spread) and spread > 0):
        return number(value, 4)
    places = 2 - math.floor(math.log10(spread))
    if places > 8 or abs(value) >= 1e6:
        return f"{value:.{max(3, 1 + places + _magnitude(value))}g}"
    return f"{value:.{max(places, 0)}f}"


def _magnitude(value: float) -> int:
    """Return the power of ten of a number's first digit."""
    return math.floor(math.log10(abs(value))) if value else 0


def interval(low: float, high: float) -> str:
    """Return two ends with digits by their distance, `9.6 to 10.0`."""
    return f"{rounded(low, 10 * (high - low))} to {rounded(high, 10 * (high - low))}"


def percent(share: float) -> str:
    """Return a share as a percentage, with a digit more where it is small."""
    if math.isnan(share):
        return "–"
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"


def with_unit(text: str, unit: str) -> str:
    """Return a number with its unit, if it has one."""
    return f"{text} {unit}" if unit else text


def counted(count: int, singular: str, plural: str = "") -> str:
    """Return a count with its noun.

    Example:
        >>> counted(1, "trajectory", "trajectories"), counted(3, "draw")
        ('1 trajectory', '3 draws')
    """
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def words_of(names: Sequence[str], most: int = 5) -> str:
    """Return names as an enumeration, the last of many as their number."""
    shown, more = list(names[:most]), len(names) - most
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)
