"""Equations of `vinppl.equations` as HTML."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

__all__ = ["equation_markup"]

LETTER = "A-Za-zα-ωΑ-Ω"
TOKEN = re.compile(
    rf"_(?:\{{(?P<below>[^}}]*)\}}|(?P<low>\w))"
    rf"|\^(?:\{{(?P<above>[^}}]*)\}}|(?P<high>\w))"
    rf"|(?<![{LETTER}])(?P<d>d)(?=²?(?P<what>[a-zA-Z])(?![{LETTER}]))"
    rf"|(?P<variable>(?<![{LETTER}])[{LETTER}](?![{LETTER}])|(?<=(?<![{LETTER}])d)[a-zA-Z](?![{LETTER}]))"
)


def equation_markup(line: str) -> Markup:
    """Return a line with indices lowered, powers raised and single letters in italics.

    Names of functions and distributions stay upright, as does the d of a derivative.

    Example:
        >>> equation_markup("d²q/dt² = −ω_0 q")
        Markup('d²<i>q</i>/d<i>t</i>² = −<i>ω</i><sub>0</sub> <i>q</i>')
    """
    parts, end = [], 0
    for match in TOKEN.finditer(line):
        parts.append(escape(line[end : match.start()]))
        parts.append(_token(match))
        end = match.end()
    return Markup("").join([*parts, escape(line[end:])])


def _token(match: re.Match[str]) -> Markup:
    below = match["below"] or match["low"]
    if below:
        return Markup("<sub>{}</sub>").format(below)
    above = match["above"] or match["high"]
    if above:
        return Markup("<sup>{}</sup>").format(above)
    return Markup("d") if match["d"] else Markup("<i>{}</i>").format(match["variable"])
