"""The command line, called in this process: what it prints, what it writes, its exit codes."""

import dataclasses
import io
import subprocess
import sys
import webbrowser
from pathlib import Path

import pandas as pd
import pytest
import torch

from toco_lab.commands.app import main
from toco_lab.commands.sweeps import _parse_parameter
from toco_lab.commands.train import TrainOptions, options_of_preset
from toco_lab.config import Config, field_help
from toco_lab.method.model import ToCo
from toco_lab.presets import PRESETS
from toco_lab.runs.run_dir import RunDir
from toco_lab.runs.table import cell_text
from toco_lab.training.checkpoints import load_run_model
from toco_lab.training.released import export_released


def test_train_gives_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", "smoke", "--root", str(tmp_path), "--name", "a", "--w-ctc", "0", "--val-every", "2"]) == 0
    run = RunDir(tmp_path / "a")
    assert run.config() == Config.preset("smoke").replace(w_ctc=0.0, val_every=2)
    assert run.status()["state"] == "done"
    assert run.metrics()["val_seg"].notna().sum() == 2
    assert {"evaluation.csv", "protocol.json", "smoothing.csv"} <= {path.name for path in run.path.iterdir()}
    table = run.read_table("evaluation")
    score = table[(table["target"] == "cam") & (table["class"] == "mIoU")]["iou"].item()
    printed = capsys.readouterr().out
    assert f"{100 * score:.1f}" in printed
    assert run.read_json("protocol")["cam"]["checkpoint"] in printed
    assert main(["runs", "--root", str(tmp_path)]) == 0
    assert cell_text(score) in capsys.readouterr().out


def test_evaluate_and_report(smoke_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(smoke_run.path), "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    assert "smoke" in out.read_text()
    both = [str(tmp_path / "a.html"), str(tmp_path / "b.md")]
    assert main(["report", str(smoke_run.path), "--out", *both, "--title", "A & B"]) == 0
    assert capsys.readouterr().out.splitlines() == both
    assert "<h1>A &amp; B</h1>" in Path(both[0]).read_text() and Path(both[1]).read_text().startswith("# A &amp; B\n")
    assert (tmp_path / "b_files" / "scores.tex").is_file() and (tmp_path / "b_files" / "gallery_CAM.png").is_file()
    assert main(["evaluate", str(smoke_run.path), "--targets", "cam", "maps"]) == 2  # before anything is written
    assert "unknown target maps" in capsys.readouterr().err


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", "smoke", "--root", str(tmp_path / "runs"), "--dry-run", "--steps", "7"]) == 0
    printed = capsys.readouterr().out
    assert "7 steps of 2 images" in printed and "toy train: 16 images" in printed and "device:" in printed
    assert "embed_dim = 24 (default None)" in printed and "random weights" in printed
    assert "GiB a process at least" in printed and "3 steps timed on cpu just now" in printed
    assert not (tmp_path / "runs").exists()


def test_dry_run_without_the_data_is_a_plan_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    voc = ["--dataset", "voc", "--num-classes", "20", "--data-root", "nowhere", "--root", str(tmp_path / "runs")]
    assert main(["train", "smoke", *voc, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "data:       voc train: NOT READY: " in printed and "nowhere" in printed and "GiB a process" in printed
    assert main(["train", "smoke", *voc]) == 2
    assert "nowhere" in capsys.readouterr().err and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["pseudo-labels", "pseudo_labels", "import-released", "import_released"])
def test_a_command_of_two_words_has_two_spellings(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0 and f"usage: python -m toco_lab {name.replace('_', '-')}" in capsys.readouterr().out


def test_help_is_quick_because_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; from toco_lab.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: assert not {'torch', 'pandas', 'numpy', 'matplotlib', 'papermill'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "pseudo-labels" in done.stdout, done.stderr


def test_a_misspelt_option_is_refused_with_a_suggestion(capsys: pytest.CaptureFixture) -> None:
    assert main(["train", "smoke", "--w-ptx", "0"]) == 2
    assert "--w-ptc" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "smoke", "--high-threshold", "0.1"], "low_threshold must be below high_threshold"),
        (["evaluate", "no/such/run"], "no config.json"),
        (["report", "no/such/run"], "no config.json"),
        (["report", "no/such/run", "--out", "report.pdf"], "a file .html or .md, got report.pdf"),
        (["data", "check", "voc_vit_b", "--data-root", "nowhere"], "2 problems"),
        (["run", "notebooks/00_start_here.ipynb", "--parameters", "preset"], "name=value"),
        (["runs", "--where", "sed > 1"], "did you mean 'seed'"),
        (["runs", "list", "--columns", "sed"], "did you mean 'seed'"),
        (["runs", "compare", "one"], "two runs or more"),
        (["runs", "plot", "seconds", "seed", "--out", "x.pdf"], ".html or .png"),
        (["runs", "plot", "seconds", "seed", "--root", "no/such"], "none of 0 runs"),
        (["runs", "open", "no/such/run"], "no config.json"),
        (["runs", "delete"], "give the runs"),
        (["runs", "delete", "notebooks"], "no config.json"),
    ],
)
def test_what_the_user_can_mend_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error
    with pytest.raises((ValueError, FileNotFoundError)):
        main([*arguments, "--debug"])


def test_data_show_writes_a_picture(tmp_path: Path) -> None:
    assert main(["data", "show", "smoke", "--count", "2", "--out", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("preset", PRESETS)
def test_options_are_the_fields_of_config(preset: str) -> None:
    made = options_of_preset(preset)
    own = {field.name for field in dataclasses.fields(TrainOptions)}
    assert {field.name for field in dataclasses.fields(made)} - own == set(field_help()) - {"preset_name"}
    assert made().config() == Config.preset(preset)
    released = made(released=True, w_ptc=0.125).config()
    assert released == Config.preset(preset).released().replace(w_ptc=0.125)


def test_help_shows_help_and_default_of_a_field(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "smoke", "--help"])
    assert stopped.value.code == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"{field_help()['w_ptc']} (default: {PRESETS['smoke']['w_ptc']})" in words


def test_parameters_are_literals_or_text() -> None:
    assert _parse_parameter("preset=toy") == ("preset", "toy")
    assert _parse_parameter('overrides={"w_ptc": 0.0}') == ("overrides", {"w_ptc": 0.0})
    assert _parse_parameter("run_dir=a=b") == ("run_dir", "a=b")


def test_a_released_checkpoint_becomes_a_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = ToCo(Config.preset("smoke"))
    state = {f"module.{name}": value for name, value in export_released(model).items()}
    torch.save(state | {"module.encoder.head.weight": torch.zeros(2, 24)}, tmp_path / "theirs.pth")
    command = ["import_released", "smoke", str(tmp_path / "theirs.pth"), "--root", str(tmp_path)]
    assert main(command) == 0
    assert "missing: none; unexpected: encoder.head.weight" in capsys.readouterr().out
    loaded, cfg = load_run_model(RunDir(tmp_path / "released-theirs"))
    assert torch.equal(loaded.decoder.conv2.weight, model.decoder.conv2.weight) and cfg.late_segmentation
    assert main(["evaluate", str(tmp_path / "released-theirs")]) == 0


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def three_runs(tmp_path: Path) -> Path:
    """Runs at two depths: scores 0.25 and 0.5 at w_ptc 0, 0.75 at 0.5."""
    for name, seed, w_ptc, score in (("a", 0, 0.0, 0.25), ("b", 1, 0.0, 0.5), ("deep/c", 0, 0.5, 0.75)):
        run = RunDir.create(Config.preset("smoke").replace(seed=seed, w_ptc=w_ptc), tmp_path, name=name)
        run.set_status("done", step=4)
        run.write_table("evaluation", pd.DataFrame({"target": ["cam"], "class": ["mIoU"], "iou": [score]}))
    return tmp_path


def test_runs_lists_filters_sorts_and_exports(three_runs: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["runs", "--root", str(three_runs)]) == 0
    alone = capsys.readouterr().out
    assert main(["runs", "list", "--root", str(three_runs)]) == 0
    assert capsys.readouterr().out == alone
    assert alone.split("\n")[0].split() == "run state cam_mIoU w_ptc seed".split()
    assert f"3 runs below {three_runs}" in alone and "0.75" in alone
    out = three_runs / "out.csv"
    command = ["runs", "list", "--root", str(three_runs), "--where", "seed == 0", "--sort", "cam_mIoU", "--descending"]
    assert main([*command, "--columns", "cam_mIoU", "lr", "--csv", str(out)]) == 2  # no run has trained
    assert "no column 'lr'" in capsys.readouterr().err
    assert main([*command, "--columns", "cam_mIoU", "embed_dim", "--csv", str(out)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == [["run", "cam_mIoU", "embed_dim"], ["deep/c", "0.75", "24"], ["a", "0.25", "24"]]
    assert pd.read_csv(out)[["run", "w_ptc", "num_heads"]].to_numpy().tolist() == [["deep/c", 0.5, 2], ["a", 0.0, 2]]


def test_runs_compare_and_open(three_runs: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    assert main(["runs", "compare", "a", str(three_runs / "deep" / "c"), "--root", str(three_runs)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["w_ptc", "0", "0.5"] and ["cam_mIoU", "0.25", "0.75"] in lines
    (three_runs / "a" / "figures").mkdir()
    (figure := three_runs / "a" / "figures" / "scene.png").write_bytes(b"12345")
    assert main(["runs", "open", "a", "--root", str(three_runs)]) == 0
    assert f"picture          5 bytes  {figure}" in capsys.readouterr().out
    shown = []
    monkeypatch.setattr(webbrowser, "open", lambda address: shown.append(address) or True)
    assert main(["runs", "open", "a", "--root", str(three_runs), "--show", "scene"]) == 0
    assert shown == [figure.as_uri()]
    assert main(["runs", "open", "a", "--root", str(three_runs), "--show", "scne"]) == 2
    assert "there are: scene.png" in capsys.readouterr().err


def test_runs_plot_writes_a_page_or_a_picture(three_runs: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["runs", "plot", "cam_mIoU", "w_ptc", "--root", str(three_runs), "--colour", "seed"]
    page, picture = three_runs / "out" / "p.html", three_runs / "p.png"
    assert main([*command, "--out", str(page)]) == 0
    assert page.stat().st_size > 1_000_000 and "seed = 1" in page.read_text()  # plotly is inside
    assert main([*command, "--out", str(picture), "--where", "seed == 0"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"{page}: 3 runs\n{picture}: 2 runs\n" == capsys.readouterr().out


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_runs_delete_asks(three_runs: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["runs", "delete", "a", str(three_runs / "a"), "deep/c", "--root", str(three_runs)]
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(command) == 2
    found = capsys.readouterr()
    assert "a: done, step 4, " in found.out and "--yes" in found.err
    for answer in ("\n", "n\n", "yess\n"):
        monkeypatch.setattr("sys.stdin", _Terminal(answer))
        assert main(command) == 0
        assert "nothing deleted" in capsys.readouterr().out and (three_runs / "a").is_dir()
    monkeypatch.setattr("sys.stdin", _Terminal("y\n"))
    assert main(command) == 0
    assert capsys.readouterr().out.count(f"deleted {three_runs}") == 2  # a was given twice
    assert not (three_runs / "a").exists() and not (three_runs / "deep" / "c").exists()
    assert main(["runs", "delete", "b", "deep/c", "--yes", "--root", str(three_runs)]) == 2  # all or nothing
    assert (three_runs / "b").is_dir()
    assert main(["runs", "delete", "b", "--yes", "--root", str(three_runs)]) == 0
    assert not (three_runs / "b").exists()


def test_runs_needs_no_torch(three_runs: Path) -> None:
    code = (
        "import sys; from toco_lab.__main__ import main; code = main(sys.argv[1:])\n"
        "assert not {'torch', 'matplotlib', 'plotly', 'ipywidgets', 'IPython'} & set(sys.modules); sys.exit(code)"
    )
    for command in (["list"], ["compare", "a", "b"], ["open", "a"], ["delete", "a", "--yes"]):
        arguments = [sys.executable, "-c", code, "runs", *command, "--root", str(three_runs)]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
