"""The command line: `toco-lab train toy --w-ptc 0`, `toco-lab demo`, `toco-lab --help`; or `python -m toco_lab ...`.

Heavy modules are imported by the command that needs them: `--help` answers at once.
"""

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from toco_lab import __version__, progress
from toco_lab.commands.boxes import boxes
from toco_lab.commands.data import data
from toco_lab.commands.demo import demo
from toco_lab.commands.domain import domain
from toco_lab.commands.export import export
from toco_lab.commands.images import images
from toco_lab.commands.new_project import new_project
from toco_lab.commands.notebooks import notebooks
from toco_lab.commands.parser import Commands, asked_for_help, options_of, parse
from toco_lab.commands.predict import predict
from toco_lab.commands.runs import runs
from toco_lab.commands.smoothing import smoothing
from toco_lab.commands.student import student
from toco_lab.commands.sweeps import run, study, sweep
from toco_lab.commands.train import config_file, train_command
from toco_lab.commands.trained import attributions, evaluate, import_released, pseudo_labels, report
from toco_lab.commands.video import video
from toco_lab.files import in_words
from toco_lab.words import program

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ABOUT = (
    "Train and look into ToCo. `COMMAND --help` shows the usual options of a command, `--help-all` all of them. With "
    "any command, `--quiet` leaves progress out and `--debug` shows an error's traceback; `--version` alone says which "
    "version this is."
)


def commands(words: Sequence[str] = ()) -> Commands:
    """All commands. The options of `train` are those that `words`, a command line, can mean."""
    app = Commands()
    app.command(train_command(words), name="train")
    app.command(evaluate)
    app.command(aliases=["pseudo_labels"])(pseudo_labels)
    app.command(student)
    app.command(predict)
    app.command(attributions)
    app.command(boxes)
    app.command(domain)
    app.command(video)
    app.command(images)
    app.command(report)
    app.command(smoothing)
    app.command(aliases=["new_project"])(new_project)
    app.command(run)
    app.command(sweep)
    app.command(study)
    app.command(data, name="data", help="Check, show, label and prepare data sets.")
    app.command(runs, name="runs", help="List, filter, compare, plot, open, log and delete runs.")
    app.command(aliases=["import_released"])(import_released)
    app.command(export)
    app.command(demo)
    app.command(notebooks)
    return app


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    An error that the user can mend is one line on standard error and the code 2; with `--debug` it is raised instead.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    debug, quiet = "--debug" in arguments, "--quiet" in arguments  # of every command, wherever they stand
    words = [word for word in arguments if word not in ("--debug", "--quiet")]
    if words == ["--version"]:
        print(f"toco_lab {__version__}")
        return 0
    try:
        command = parse(commands(words), asked_for_help(config_file(words)[2]), prog=program(), description=_ABOUT)
        with options_of(words), progress.quiet() if quiet else nullcontext():
            command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `... | head` has seen enough
        _say_no_more()
        return 141
    except _user_errors() as error:
        if debug:
            raise
        print(f"error: {_one_message(error)}", file=sys.stderr)
        return 2
    return 0


def _one_message(error: Exception) -> str:
    """What is wrong, and what to do. Of what cannot be written only the standard output has no name."""
    message = in_words(_without_traceback(error))
    try:
        sys.stdout.flush()
    except OSError:
        _say_no_more()
    unnamed = isinstance(error, OSError) and error.errno in _FULL and not error.filename
    return f"the standard output: {message}" if unnamed else message


def _say_no_more() -> None:
    """Let the interpreter, which tries to print the rest at its end, print it nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _without_traceback(error: Exception) -> str:
    """The message; an error from a loader process carries its traceback in the message, which is cut off."""
    name = f"{type(error).__name__}: "
    text = str(error)
    return text.rpartition(name)[2].strip() if text.startswith("Caught ") and name in text else text


def _user_errors() -> tuple[type[Exception], ...]:
    """Errors that the user can mend, among them all that the operating system refuses.

    A module that nothing has imported cannot have raised its own, and stays out.
    """
    own = {"toco_lab.training.finite": "TrainingError", "toco_lab.sweeps.notebooks": "NotebookError"}
    loaded = (getattr(sys.modules[module], name) for module, name in own.items() if module in sys.modules)
    return (ValueError, OSError, *loaded)
