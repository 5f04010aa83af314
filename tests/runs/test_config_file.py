"""A config as a file: what is written is read back equal, what a person writes is checked line by line."""

from pathlib import Path

import pytest

from toco_lab.commands.app import main
from toco_lab.config import Config, field_help
from toco_lab.presets import PRESETS
from toco_lab.runs.config_file import read_config, write_config
from toco_lab.runs.run_dir import RunDir

ODD = Config.preset("smoke").replace(
    w_ptc=1e-7, seed=3, cam_scales=(1.0, 0.25), high_threshold_end=(0.6,), depth=None, view2_size=None, refine=False
)


@pytest.mark.parametrize("cfg", [*map(Config.preset, PRESETS), ODD, Config(), Config.preset("voc_vit_b").released()])
@pytest.mark.parametrize("name", ["a.yaml", "a.yml", "a.json"])
def test_a_saved_config_is_read_back_equal(cfg: Config, name: str, tmp_path: Path) -> None:
    write_config(tmp_path / name, cfg)
    read = read_config(tmp_path / name)
    assert read == cfg and read.digest() == cfg.digest()
    text = (tmp_path / name).read_text()
    assert all(f"{field}" in text for field in field_help())
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_text_of_any_letters_comes_back(tmp_path: Path) -> None:
    cfg = Config.preset("folder").replace(
        data_root='Bücher/"größe" 😀: #1', classes=("null", "true", "1e3"), num_classes=3
    )
    write_config(tmp_path / "a.yaml", cfg)
    assert read_config(tmp_path / "a.yaml") == cfg


def test_a_short_file_has_the_rest_from_its_preset(tmp_path: Path) -> None:
    (path := tmp_path / "my.yaml").write_text("# mine\npreset: smoke\nw_ptc: 1\ncam_scales: [1, 0.5, 2]\nseed: 4\n")
    wanted = Config.preset("smoke").replace(w_ptc=1.0, cam_scales=(1.0, 0.5, 2.0), seed=4)
    assert read_config(path) == wanted == read_config(path, preset="smoke")
    path.write_text("w_ptc: 1")
    assert read_config(path, preset="toy") == Config.preset("toy").replace(w_ptc=1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset: smoke\n\nw_ptx: 1\n", ", line 3: unknown config field 'w_ptx', did you mean 'w_ptc'?"),
        ("preset: smoke\nsteps: many\n", ", line 2: config field 'steps' must be int, got 'many'"),
        ("preset: smoke\nw_ptc: -1\n", ", line 2: config: w_ptc must not be negative, got -1.0"),
        ("preset: smok\n", "unknown preset 'smok', did you mean 'smoke'?"),
        ("preset: [smoke]\n", ", line 1: config field 'preset_name' must be str"),
        ("preset: smoke\npreset_name: toy\n", "has both `preset` and `preset_name`"),
        ("preset: smoke\nhigh_threshold: 0.1\n", "low_threshold must be below high_threshold"),
        ("w_ptc: 1\n", "names no preset to start from: add a line like `preset: folder`"),
        ("", "must hold lines like"),
        ("- smoke\n", "must hold lines like"),
        ("preset: smoke\nw_ptc: 1\nw_ptc: 2\n", "comes twice"),
        ("preset: smoke\nsteps: 010\n", "base 8"),
        ("3: 4\npreset: smoke\n", ", line 1: unknown config field 3"),
    ],
)
def test_a_file_with_a_fault_is_refused_with_its_line(text: str, message: str, tmp_path: Path, capsys) -> None:
    (path := tmp_path / "my.yaml").write_text(text)
    assert main(["train", "--config", str(path), "--root", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}") and message in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config"], "--config needs a file"),
        (["--config", "--steps", "3"], "--config needs a file"),
        (["--config", "FILE", "--config=FILE"], "--config is given twice"),
        (["toy", "--config", "FILE"], "two presets given: 'toy', and 'smoke' in "),
        (["nosuch", "--config", "FILE"], "'nosuch' is not expected"),
        (["--config", "FILE", "--w-ptx", "1"], "unknown option '--w-ptx', did you mean '--w-ptc'?"),
        (["--config", "FILE", "--save-config", "a.txt"], "a config file ends in .yaml, .yml or .json, got a.txt"),
        (["--config", "FILE", "--save-config", "a.yaml", "--dry-run"], "--dry-run has no effect with --save-config"),
        (["--config", "no.yaml"], "no.yaml: No such file"),
        (["--config", "FILE", "--data-root", "here"], "data_root='here' has no effect"),
    ],
)
def test_a_line_with_a_config_that_cannot_be_meant(words, message, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text("preset: smoke\n")
    assert main(["train", *(word.replace("FILE", "my.yaml") for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["my.yaml"]


def test_train_from_a_file_gives_the_run_of_its_options(tmp_path: Path, capsys) -> None:
    file, runs = tmp_path / "my.yaml", str(tmp_path)
    options = ["--w-ctc", "0", "--seed", "5", "--steps", "3"]
    assert main(["train", "smoke", *options, "--save-config", str(file)]) == 0
    assert f"train --config {file}` trains it" in capsys.readouterr().out and not list(tmp_path.glob("*/"))
    wanted = Config.preset("smoke").replace(w_ctc=0.0, seed=5, steps=3)
    there, no_more = f"--config={tmp_path / 'a' / 'config.json'}", ["--no-evaluate", "--root", runs, "--name"]
    assert main(["train", "--config", str(file), *no_more, "a"]) == 0
    assert main(["train", "smoke", there, "--seed", "6", *no_more, "b"]) == 0
    assert main(["train", *no_more, "c", "--released", "--w-ctc", "0.25", "--config", str(tmp_path / "a")]) == 0
    made = [RunDir(tmp_path / name).config() for name in "abc"]
    assert made[0] == wanted and made[0].run_name() == wanted.run_name()
    assert made[1] == wanted.replace(seed=6) and made[1].digest() == wanted.digest()
    assert made[2] == wanted.released().replace(w_ctc=0.25)
