"""The parts a report is made of: what is said, whoever writes it down."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toco_lab.evaluation.gallery import JointRow
from toco_lab.reports.comparison import RunFiles
from toco_lab.reports.tables import Table


@dataclass(frozen=True)
class Text:
    """A paragraph: how to read something, what is missing, or what to be careful about."""

    text: str
    kind: Literal["note", "missing", "warning"] = "note"
    run: str = ""  # that it is about


@dataclass(frozen=True)
class Points:
    """Things to be careful about, a line each."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Lines for a shell."""

    text: str


@dataclass(frozen=True)
class Plot:
    """A figure, drawn when it is wanted: `screen` gives a plotly figure, `paper` a matplotlib one, or a Table."""

    name: str
    title: str
    screen: Callable[[], Any]
    paper: Callable[[], Any]


@dataclass(frozen=True, eq=False)
class Galleries:
    """What several runs make of the same images.

    Attributes:
        rows: The images.
        runs: Label -> run name, the columns.
        names: Class names 0..C.
    """

    rows: list[JointRow]
    runs: Mapping[str, str]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Pictures:
    """Figures of one name, which notebooks left in run folders: run name -> file."""

    stem: str
    files: Mapping[str, Path]

    @property
    def title(self) -> str:
        """The name as words."""
        return re.sub("[_-]+", " ", self.stem).strip()


@dataclass(frozen=True)
class Tokens:
    """The token explorer, for a screen."""

    runs: Mapping[str, RunFiles]


Part = Text | Points | Code | Plot | Galleries | Pictures | Tokens | Table


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    heading: str
    parts: list[Part]
