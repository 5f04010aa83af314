"""Every option with words it cannot be: one line that names it, the code 2, and nothing written."""

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from helpers.config_values import FIELDS, kinds, outside

from toco_lab.commands.app import main
from toco_lab.commands.parser import Commands, given_options, options_of, parse
from toco_lab.commands.train import TrainOptions, options_of_preset

OPTIONS = [name for name in FIELDS if name != "preset_name"]


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def wrong_words(name: str) -> list[list[str]]:
    """What a person may type behind an option and its type does not take."""
    _, listed, kind = kinds(name)
    if kind is bool:
        return [["maybe"], ["1"]]
    if kind is str:
        return [[]]
    words = ["word", ""] + (["1.5", "1e3", "nan"] if kind is int else [])
    if get_origin(kind) is Literal:
        words = ["word", "1", "", get_args(kind)[0].upper() + "x"]
    return [*([word] for word in words), *([["1", "word"]] if listed else [["1", "2"], []])]


def outside_words(name: str) -> list[list[str]]:
    """Values outside of a field's range, as words; JSON's own form where a value is text."""

    def word(value: Any) -> str:
        return value if isinstance(value, str) else repr(value)

    values = outside(name)
    typed = [value if isinstance(value, list) else [value] for value in values[:: max(1, len(values) // 3)]]
    return [[word(item) for item in value] for value in typed if "\0" not in str(value) and "\ud800" not in str(value)]


def app_of_one_preset() -> Commands:
    """The options of one preset as the whole command line: seven times as quick as all presets."""
    app = Commands()

    @app.command
    def one(options: options_of_preset("smoke")) -> None:  # type: ignore[valid-type]
        assert isinstance(options, TrainOptions)
        options.config()

    @app.command
    def two() -> None:
        pass

    return app


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_refuses_what_its_field_cannot_be(name: str) -> None:
    app, spelt = app_of_one_preset(), "--options." + name.replace("_", "-")
    for words in [*wrong_words(name)[:3], *outside_words(name)[:1]]:
        with pytest.raises(ValueError) as error:
            parse(app, ["one", spelt, *words])()
        message = str(error.value)
        assert name in message.replace("-", "_") and "\n" not in message and "│" not in message
        assert len(message) < 600


@pytest.mark.parametrize("name", OPTIONS[::6])
def test_the_whole_command_says_so_in_one_line_and_writes_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for words in (wrong_words(name)[0], *outside_words(name)[:1]):
        assert main(["train", "smoke", "--root", str(tmp_path / "runs"), option(name), *words]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and not printed.out
        assert name in printed.err.replace("-", "_")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train smoke --steps abc", "--steps must be a whole number, got 'abc'"),
        ("train smoke --w-ptc 1,5", "--w-ptc must be a number, got '1,5'"),
        ("train smoke --depth x", "--depth must be None or a whole number, got 'x'"),
        ("train smoke --cam-scales 1 x", "--cam-scales must be a number, each of its items, got ['1', 'x']"),
        ("train smoke --dataset pascal", "--dataset must be one of 'toy', 'voc', 'coco', 'folder', got 'pascal'"),
        ("train smoke --refine maybe", "'maybe' is not expected after --refine: it takes no such value"),
        ("train smoke --steps", "--steps needs a value"),
        ("train smoke --w-ptx 1", "unknown option '--w-ptx', did you mean '--w-ptc'?"),
        ("attributions results/toy --num-imagse 3", "unknown option '--num-imagse', did you mean '--num-images'?"),
        ("attributions results/toy --stepz 3", "unknown option '--stepz', did you mean '--steps'?"),
        ("train smoke --zzzzzz", "unknown option '--zzzzzz'; --help-all shows all"),
        ("train smok", "'smok' is not expected, did you mean 'smoke'?"),
        ("train", "Expected one of {toy, toy_parts, smoke, "),
        ("trian smoke", "'trian' is not expected, did you mean 'train'?"),
        ("runs lisst", "'lisst' is not expected, did you mean 'list'?"),
        ("data check toy here", "'here' is not expected"),
        ("evaluate", "evaluate needs PATH Folder of the run."),
        ("sweep grid.yaml --executor slurm", "--executor must be one of 'local', 'ray', got 'slurm'"),
        ("sweep grid.yaml --workers x", "--workers must be a whole number, got 'x'"),
        ("pseudo-labels run --kinds foo", "--kinds must be one of 'seed', 'refined', 'crf', 'aux', 'seg', got 'foo'"),
        ("train smoke --steps 5 --steps=6", "--steps is given twice: the first would have no effect"),
        ("train smoke --refine --no-refine", "--refine is given twice: the first would have no effect"),
        (
            "train smoke --weights a.pth",
            "weights='a.pth' has no effect: pretrained is False, so the weights are random",
        ),
        ("study --seeds 3", "--seeds has no effect without the name of a study: all are listed. Leave it out"),
        ("study --workers 1", "--workers has no effect without the name of a study"),
        ("study --tables", "--tables has no effect without the name of a study"),
        ("study --root runs", "--root has no effect without the name of a study"),
        ("study toy_table --tables --workers 2", "--workers has no effect with --tables: no run is made"),
        ("sweep docs/smoke.yaml --cpus 1", "--cpus has no effect with executor local. Leave it out"),
        ("sweep docs/smoke.yaml --gpus 1", "--gpus has no effect with executor local"),
        ("sweep docs/smoke.yaml --address auto", "--address has no effect with executor local"),
        ("sweep docs/smoke.yaml --executor ray --workers 2", "--workers has no effect with executor ray"),
        ("train smoke --label-source masks", "label_source='masks' has no effect: the data set 'toy' does not read it"),
    ],
)
def test_a_wrong_line_is_answered_by_one(line: str, message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(line.split()) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and message in printed and printed.count("\n") == 1


def test_an_option_that_is_given_wins_over_released_even_at_its_default() -> None:
    options = options_of_preset("smoke")(released=True)
    assert options.config().padding == "black"
    with options_of(["train", "smoke", "--released", "--padding", "mean"]):
        assert given_options() == {"released", "padding"}
        assert options.config().padding == "mean"
    assert given_options() == frozenset()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parameters", "run_dir=3"], "parameter 'run_dir' must name a folder, got 3; put it in quotes"),
        (["--parameters", "compare_with=[1]"], "parameter 'compare_with' must name a folder, got [1]"),
        (["--parameters", "preset=toy", "preset=smoke"], "parameter 'preset' is given twice"),
        (["--parameters", "preset=3"], "must be str, got 3"),
        (["--parameters", "prest=toy"], "has no parameter 'prest', did you mean 'preset'?"),
        (["--parameters", "overrides={'w_ptc': 1e999}"], "'overrides' cannot hold inf"),
        (["--parameters", "overrides={'w_ptcc': 1}"], "unknown config field 'w_ptcc', did you mean 'w_ptc'?"),
        (["--parameters", "preset"], "a parameter is name=value, got 'preset'"),
        (["--timeout", "nan"], "timeout must lie in [1, 100000000] seconds, got nan"),
        (["--timeout", "0"], "timeout must lie in [1, 100000000] seconds, got 0"),
    ],
)
def test_wrong_parameters_of_a_notebook(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    notebook = Path(__file__).parents[2] / "notebooks" / "03_train.ipynb"
    assert main(["run", str(notebook), "--output", str(tmp_path / "out"), *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1 and not list(tmp_path.iterdir())
