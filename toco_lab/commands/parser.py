"""A command line is parsed first and run afterwards, so that what is wrong in it is one line like every other error."""

import contextlib
import functools
import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from itertools import dropwhile, takewhile
from typing import Any

from tyro.extras import SubcommandApp

from toco_lab.fields import shown
from toco_lab.files import did_you_mean

_KINDS = {
    "INT": "a whole number",
    "FLOAT": "a number",
    "STR": "text",
    "{None}": "None",
    "{True,False}": "True or False",
}
_given: ContextVar[frozenset[str]] = ContextVar("given", default=frozenset())


class Commands(SubcommandApp):
    """Commands that `parse` returns ready to be called; called from Python they are the functions they were."""

    def command(self, func: Any = None, **options: Any) -> Any:
        """Register a command, as `SubcommandApp.command` does."""
        if func is None:
            return functools.partial(self.command, **options)
        later = func if isinstance(func, SubcommandApp) else _later(func)
        super().command(later, **options)
        return func


def parse(app: SubcommandApp, arguments: list[str], **about: Any) -> Callable[[], None]:
    """The command that a line asks for, with its options, ready to be called.

    Args:
        app: All commands.
        arguments: The words of the line.
        about: What `SubcommandApp.cli` takes beside.

    Raises:
        ValueError: For an unknown command or option, a value of the wrong type, or an option that comes twice. The
            message is one line with the name of the option.
        SystemExit: After `--help`.
    """
    _refuse_repeated(arguments)
    command, printed = _parsed(app, arguments, about)
    if command is None:
        message, place = _in_one_line(printed, arguments)
        hint = "" if place is None else _known_there(app, arguments, place, about)
        raise ValueError(message + hint)
    sys.stderr.write(printed)
    return command


def _parsed(app: SubcommandApp, arguments: list[str], about: dict[str, Any]) -> tuple[Callable[[], None] | None, str]:
    """The command, or None for a line that is wrong; and what tyro printed about it."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return app.cli(args=arguments, **about), printed.getvalue()
    except SystemExit as left:
        if not left.code:
            raise
        return None, printed.getvalue()


def _known_there(app: SubcommandApp, arguments: list[str], place: int, about: dict[str, Any]) -> str:
    """The end of a message about a word without meaning: the command or preset that may stand in its place."""
    known = _names_below(app, arguments[:place])
    if not known:
        printed = _parsed(app, arguments[:place], about)[1]  # "Expected one of {toy, smoke}"
        known = re.findall(r"[\w-]+", printed.partition("{")[2].partition("}")[0])
    return did_you_mean(arguments[place], known) or f"; there are: {', '.join(known)}" if known else ""


HELP = ("-h", "--help", "--help-all")


def asked_for_help(arguments: list[str]) -> list[str]:
    """The words of the command alone and `--help`, where a line asks for it in any way; else the line as it is."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    if not set(HELP) & set(arguments[:end]):
        return arguments
    return [*takewhile(lambda word: not word.startswith("-"), arguments), "--help"]


def _names_below(app: SubcommandApp, words: list[str]) -> list[str]:
    """The commands that may stand after these; none after a command that has none below it."""
    for word in words:
        below = app._subcommands.get(word)
        if below is None or not isinstance(below.target, SubcommandApp):
            return []
        app = below.target
    return [name.replace("_", "-") for name in app._subcommands]


@contextlib.contextmanager
def options_of(arguments: list[str]) -> Iterator[None]:
    """Inside, `given_options` says which options these words name."""
    token = _given.set(frozenset(_name_of(word).replace("-", "_") for word in _options(arguments)))
    try:
        yield
    finally:
        _given.reset(token)


def given_options() -> frozenset[str]:
    """Names of the options on the command line that is being run, like `w_ptc`; empty when called from Python."""
    return _given.get()


def refuse_given(names: Iterable[str], because: str) -> None:
    """ValueError if one of these options is on the command line that is being run, where it would have no effect.

    Args:
        names: Options, like `workers`.
        because: Why they have none, like "without the name of a study".
    """
    for name in names:
        if name in given_options():
            raise ValueError(f"--{name.replace('_', '-')} has no effect {because}. Leave it out")


def _later(func: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    @functools.wraps(func)
    def bound(*args: Any, **options: Any) -> Callable[[], None]:
        return functools.partial(func, *args, **options)

    return bound


def _options(arguments: list[str]) -> list[str]:
    """The words that are options."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [word for word in arguments[:end] if word.startswith("--")]


def _name_of(option: str) -> str:
    """`w-ptc` of `--w-ptc`, `--w_ptc=1` and `--no-w-ptc`."""
    return re.sub("^no-", "", option.partition("=")[0].lstrip("-").replace("_", "-"))


def _refuse_repeated(arguments: list[str]) -> None:
    options = _options(arguments)
    names = [_name_of(option) for option in options]
    for option, name in zip(options, names, strict=True):
        if names.count(name) > 1:
            raise ValueError(
                f"{option.partition('=')[0]} is given twice: the first would have no effect. Leave one out"
            )


# --- tyro's box, in one line ------------------------------------------------------------------------------------------


def _in_one_line(box: str, arguments: list[str]) -> tuple[str, int | None]:
    """What tyro says in a box with a title, a text, a rule and a help text; and where a word has no meaning."""
    rows = [row for line in box.splitlines() if (row := line.strip("│╭╮╰╯ "))]  # a terminal without UTF-8 has none
    below = dropwhile(lambda row: not row.strip("─- "), rows[1:])  # the title is the first
    text = " ".join(takewhile(lambda row: row.strip("─- "), below))
    if unknown := re.match(r"Unrecognized (?:or misplaced )?options: (.*)", text):
        return _unknown(unknown[1], box, arguments)
    if wrong := re.match(r"Error parsing (\S+): (.*)", text):
        return _wrong_value(wrong[1], wrong[2], box), None
    if choice := re.match(r"invalid choice (.*) for argument '(.*?)'\. Expected one of \((.*?),?\)", text):
        return f"{choice[2]} must be one of {choice[3]}, got {choice[1][:200]}", None
    if missing := re.match(r"Missing value for argument '(.*?)'", text):
        return f"{missing[1]} needs a value", None
    if missing := re.match(r"Missing from (.*?): (.*) \(required\)", text):
        return f"{missing[1]} needs {' '.join(missing[2].split())[:300]}", None
    return text[:500], None


def _unknown(words: str, box: str, arguments: list[str]) -> tuple[str, int | None]:
    """An option that there is not, or a word where nothing takes it, and in that case where it stands."""
    place = next((place for place, word in enumerate(arguments) if word and words.startswith(word[:20])), 0)
    word = arguments[place]
    if word.startswith("-"):
        near = re.search(r"Perhaps you meant:\W+(--[\w-]+)", box)
        return f"unknown option {shown(word)}" + (
            f", did you mean {near[1]!r}?" if near else "; --help-all shows all"
        ), None
    option = next((before for before in reversed(arguments[:place]) if before.startswith("--")), "")
    if option:
        return f"{shown(word)} is not expected after {option}: it takes no such value", None
    return f"{shown(word)} is not expected", place


def _wrong_value(option: str, message: str, box: str) -> str:
    """A value of another type than the option's, which tyro names in its help text."""
    kind = re.search(rf"(?m)^[│ ]*{re.escape(option)} (.*?)[│ ]*$", box)
    given = re.search(r"""(?:: |from \[)(['"].*?['"])(?:\]\.|$)|for arguments: (\[.*\])$""", message)
    if kind is None or given is None:
        return f"{option}: {message[:400]}"
    names = dict.fromkeys(re.findall(r"\{.*?\}|\w+", kind[1]))
    several = ", each of its items" if "[" in kind[1] or " " in kind[1] else ""
    words = " or ".join(_KINDS.get(name, name) for name in names)
    return f"{option} must be {words}{several}, got {(given[1] or given[2])[:200]}"
