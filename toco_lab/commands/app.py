"""The command line: `python -m toco_lab train toy --w-ptc 0`, `... demo`, `... --help`.

Heavy modules are imported by the command that needs them: `--help` answers at once.
"""

import sys

import tyro

from toco_lab.commands.data import data
from toco_lab.commands.demo import demo
from toco_lab.commands.measure import evaluate, import_released, pseudo_labels, report
from toco_lab.commands.runs import RUNS_COMMANDS, runs
from toco_lab.commands.sweeps import run, sweep
from toco_lab.commands.train import train

COMMANDS = {
    function.__name__: function
    for function in (train, evaluate, pseudo_labels, report, run, sweep, data, runs, import_released, demo)
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code. What the user can mend is one line, `--debug` shows the traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug, arguments = "--debug" in arguments, [word for word in arguments if word != "--debug"]
    if arguments and (name := arguments[0].replace("-", "_")) in COMMANDS:  # `pseudo-labels`, written like an option
        arguments = [name, *arguments[1:]]
    if arguments[:1] == ["runs"] and not {*RUNS_COMMANDS, "--help", "-h"} & set(arguments[1:2]):
        arguments = ["runs", "list", *arguments[1:]]
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="python -m toco_lab",
            args=arguments,
            description="Train and look into ToCo. `COMMAND --help` shows its options, `--debug` an error's traceback.",
        )
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    except _user_errors() as error:
        if debug:
            raise
        print(f"error: {_in_short(error)}", file=sys.stderr)
        return 2
    return 0


def _in_short(error: Exception) -> str:
    """The message; of an error that a loader process passed on with its traceback, the last one."""
    name = f"{type(error).__name__}: "
    text = str(error)
    return text.rpartition(name)[2].strip() if text.startswith("Caught ") and name in text else text


def _user_errors() -> tuple[type[Exception], ...]:
    """Asked only after something was raised: an error of a module that is not imported can not have been."""
    special = {"toco_lab.training.loop": "TrainingError", "toco_lab.sweeps.notebooks": "NotebookError"}
    loaded = (getattr(sys.modules[home], name) for home, name in special.items() if home in sys.modules)
    return (ValueError, FileNotFoundError, *loaded)
