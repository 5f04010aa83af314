"""The commands that make the runs of a report again, each in its own folder, and then the report."""

import shlex
from pathlib import Path

from toco_lab.config import Config, config_differences
from toco_lab.presets import PRESETS
from toco_lab.reports.comparison import Comparison, RunRecord

_TOCO = ["python", "-m", "toco_lab"]
_ROOT = Path("results")  # where `train` puts runs unless told otherwise


def repeat_lines(comparison: Comparison, title: str) -> str:
    """Lines for a shell in the current folder; a run that is there is continued or left as it is.

    Args:
        comparison: The runs.
        title: Heading of the report.
    """
    sweeps = [path for path in comparison.paths if (path / "grid.yaml").is_file()]
    lines = []
    for path in sweeps:
        words = [*_TOCO, "sweep", _from_here(path / "grid.yaml"), "--root", _from_here(path.parent)]
        lines += [f"# all runs of the sweep {path.name}", shlex.join(words), ""]
    alone = {path.resolve() for path in comparison.paths if path not in sweeps}
    for run in comparison.runs:
        if run.run.path.resolve() in alone:
            lines += [f"# {' '.join(run.name.split())}", _train_here(run), ""]
    words = [*_TOCO, "report", *map(_from_here, comparison.paths)]
    words += ["--title", title] if title != comparison.title else []
    return "\n".join([*lines, "# this report", shlex.join([*words, "--out", "report.html", "report.md"])])


def train_command(cfg: Config) -> str:
    """The command line that makes a run of this config: its preset and the fields that differ from it."""
    base = cfg.preset_name if cfg.preset_name in PRESETS else "voc_deit_b"  # any preset will do, given the differences
    words = [*_TOCO, "train", base]
    for key, values in config_differences({"base": Config.preset(base), "run": cfg}).items():
        value, option = values["run"], key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)


def _train_here(run: RunRecord) -> str:
    """`train_command`, into the very folder that the run has."""
    path = run.run.path.resolve()
    words = [] if path.parent == _ROOT.resolve() else ["--root", _from_here(path.parent)]
    words += [] if path.name == run.config.run_name() else ["--name", path.name]
    return " ".join(filter(None, [train_command(run.config), shlex.join(words)]))


def _from_here(path: Path) -> str:
    """A path as one would type it: relative where it lies below the current folder."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
