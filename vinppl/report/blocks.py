"""What a page is made of. The template `page.html.jinja` says how each kind of block looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from markupsafe import Markup

__all__ = [
    "Block",
    "Command",
    "Details",
    "Equation",
    "Facts",
    "Finding",
    "Image",
    "Listing",
    "Page",
    "Picture",
    "Program",
    "Section",
    "Table",
    "Text",
    "found",
]


@dataclass(frozen=True)
class Text:
    """A paragraph; `note` is a remark in smaller letters, `good` and `bad` are verdicts."""

    kind: ClassVar[str] = "text"
    text: str
    tone: Literal["plain", "note", "good", "bad"] = "plain"


@dataclass(frozen=True)
class Listing:
    """Sentences as a list."""

    kind: ClassVar[str] = "listing"
    items: tuple[str, ...]


@dataclass(frozen=True)
class Equation:
    """Equations, one a line."""

    kind: ClassVar[str] = "equation"
    lines: tuple[Markup, ...]


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    kind: ClassVar[str] = "facts"
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Table:
    """A table; its first column names the row.

    Attributes:
        caption: what it shows.
        columns: heads.
        rows: as long as the heads each.
        numeric: columns that hold numbers, which stand to the right.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | Markup, ...], ...]
    numeric: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Image:
    """A picture inside the page.

    Attributes:
        uri: its data.
        width: in pixels of the screen.
        height: likewise.
    """

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        wide: for desks and paper.
        narrow: for telephones; `None` shows the wide one there.
        alt: what is to be seen, for those who do not see it.
        caption: text below.
    """

    kind: ClassVar[str] = "picture"
    wide: Image
    narrow: Image | None
    alt: str
    caption: str


@dataclass(frozen=True)
class Command:
    """A command line that makes what is missing."""

    kind: ClassVar[str] = "command"
    text: str


@dataclass(frozen=True)
class Program:
    """Source text."""

    kind: ClassVar[str] = "program"
    text: str


@dataclass(frozen=True)
class Details:
    """Blocks that open on demand."""

    kind: ClassVar[str] = "details"
    title: str
    blocks: tuple[Block, ...]


Block = Text | Listing | Equation | Facts | Table | Picture | Command | Program | Details


@dataclass(frozen=True)
class Finding:
    """A sentence for the summary.

    Attributes:
        level: `learned`; `warning`, something is wrong and can be mended; `limit`, something that this run
            cannot tell.
        text: whole sentences.
    """

    level: Literal["learned", "warning", "limit"]
    text: str


@dataclass(frozen=True)
class Section:
    """A part of the page, and what it adds to the summary."""

    name: str
    title: str
    blocks: tuple[Block, ...]
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Page:
    """The whole page.

    Attributes:
        title: its heading.
        subtitle: what was fitted to what, and when.
        sections: in order.
        footer: who made it.
    """

    title: str
    subtitle: str
    sections: tuple[Section, ...]
    footer: str

    def findings(self, level: str) -> list[tuple[Section, Finding]]:
        """Return the findings of a level with the sections that they belong to."""
        return [(s, finding) for s in self.sections for finding in s.findings if finding.level == level]


def found(level: Literal["learned", "warning", "limit"], texts: Sequence[str]) -> list[Finding]:
    """Return findings of one level."""
    return [Finding(level, text) for text in texts]
