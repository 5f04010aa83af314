"""A case, and what became of it."""

import contextlib
import io
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from toco_lab.commands.app import main

CLEAR, FINE, UNCLEAR, SILENT, CRASHED = OUTCOMES = ("clear", "fine", "unclear", "silent", "crashed")
# words of Python's own errors: they tell a programmer what happened, and nobody what to do
_PYTHON = re.compile(
    r"'NoneType'|has no attribute|not subscriptable|not iterable|unhashable|indices must be|unpack|positional arg"
    r"|object at 0x|<class '|Traceback|\b(?:Key|Attribute|Type|Value|Index|Recursion|Overflow|Assertion)Error\b"
)
_LEAST_WORDS = 2  # of a message, beside the name of the file


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        what: It in words.
        call: Gives it to the entry point, and returns what was read.
        names: A clear error names one of them: a file or a field.
        wrong: What is wrong with what was read, in words; "" where it is right.
        sound: The input has no fault, so that it must be read.
    """

    what: str
    call: Callable[[], Any]
    names: Sequence[str]
    wrong: Callable[[Any], str]
    sound: bool = False


Maker = Callable[[Random, Path], Case]  # from a generator and an empty folder


@dataclass(frozen=True)
class Outcome:
    """Of `OUTCOMES` one, the input in words, and the error or what is wrong."""

    outcome: str
    what: str
    detail: str = ""


def judge(case: Case) -> Outcome:
    """Give a case to its entry point."""
    try:
        found = case.call()
    except ValueError as error:
        return Outcome(*_of_message(case, str(error)))
    except FileNotFoundError as error:
        return Outcome(*_of_message(case, str(error)))
    except Crash as error:
        return Outcome(CRASHED, case.what, str(error))
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        return Outcome(UNCLEAR, case.what, f"{type(error).__name__} at {place}: {error}")
    fault = case.wrong(found)
    return Outcome(SILENT, case.what, fault) if fault else Outcome(FINE, case.what)


def _of_message(case: Case, message: str) -> tuple[str, str, str]:
    fault = fault_of_message(message, case.names)
    if case.sound:
        return UNCLEAR, case.what, f"a sound input is refused: {message}"
    return (UNCLEAR, case.what, f"{fault}: {message}") if fault else (CLEAR, case.what, message)


def fault_of_message(message: str, names: Sequence[str]) -> str:
    """Why a message helps nobody, in words; "" if it names the file or field, and says more than that."""
    if not any(name and name in message for name in names):
        return f"none of {', '.join(names)} is named"
    if speech := _PYTHON.search(message):
        return f"a message of Python itself ({speech[0]})"
    rest = message
    for name in filter(None, names):
        rest = rest.replace(name, " ")
    return "" if len(re.findall(r"[A-Za-z]{2,}", rest)) >= _LEAST_WORDS else "it says only that something is wrong"


class Crash(BaseException):
    """The command line ended with a traceback, or another way that no user is to see."""


def by_command(*words: str) -> Callable[[], str]:
    """The command line as an entry point: an `error:` of one line and the code 2 is raised as a ValueError.

    Returns:
        A function that gives what the command printed.
    """

    def call() -> str:
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(list(words))
        except SystemExit as end:  # of the parser of options
            if end.code in (0, None):
                return out.getvalue()
            raise ValueError(_unboxed(err.getvalue())) from end
        except Exception as error:
            raise Crash(f"a traceback instead of a message: {type(error).__name__}: {error}") from error
        if code == 0:
            return out.getvalue()
        said = err.getvalue()
        if code != 2 or "error: " not in said or "Traceback" in said:
            raise Crash(f"code {code}, {said!r}")
        raise ValueError(said.partition("error: ")[2].strip())

    return call


def _unboxed(text: str) -> str:
    """A message of the parser of options without the frame around it."""
    return " ".join(re.sub(r"[\u2500-\u257f]", " ", re.sub(r"\x1b\[[0-9;]*m", "", text)).split())
