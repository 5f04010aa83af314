"""The command behind the README's toy table: its verdicts on made-up numbers, and a small run of the real thing."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from toco_lab.config import Config

spec = importlib.util.spec_from_file_location("toy_table", Path(__file__).parents[2] / "benchmarks" / "toy_table.py")
toy_table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy_table)


def frame_with(**cams: float) -> pd.DataFrame:
    """Five seeds of every row; final CAM as given (others 40); last-block similarity 0.8, with PTC 0.7."""
    rows = []
    for row in toy_table.ROWS:
        for seed in range(5):
            noise = 0.1 * np.sin(7 * seed + len(row))
            ptc = "PTC" in row or "full" in row
            rows.append({
                "row": row, "seed": seed, "final CAM": cams.get(row, 40.0) + noise, "auxiliary CAM": 60.0,
                "segmentation": 50.0 + noise, "similarity, first block": 0.5,
                "similarity, last block": 0.7 if ptc else 0.8, "cosine of positive pairs": 0.9,
                "cosine of negative pairs": 0.4,
            })  # fmt: skip
    return pd.DataFrame(rows)


def verdicts(frame: pd.DataFrame) -> dict[str, bool]:
    """(a), (b), first (c), second (c), (d) in CAM, (d) in segmentation."""
    lines = toy_table.findings(frame)
    return dict(zip("a b c1 c2 d1 d2".split(), ["**holds**" in line for line in lines], strict=True))


def test_findings_hold_when_they_do():
    found = verdicts(frame_with(**{"baseline": 30.0, "+ PTC": 45.0, "full ToCo": 50.0}))
    assert found == {"a": True, "b": True, "c1": True, "c2": False, "d1": True, "d2": False}


def test_findings_do_not_hold_when_they_do_not():
    frame = frame_with(**{"baseline": 57.0, "+ PTC": 45.0})
    frame.loc[(frame["row"] == "+ PTC + seg + reg") & (frame["seed"] == 3), "similarity, last block"] = 0.9
    assert verdicts(frame) == dict.fromkeys(("a", "b", "c1", "c2", "d1", "d2"), False) | {"a": True}


def test_rows_differ_only_in_their_switches():
    base = Config.preset("toy")
    assert toy_table.config_of("full ToCo", 0, "toy") == base
    assert toy_table.config_of("full ToCo, released oddities", 0, "toy") == base.released()
    baseline = toy_table.config_of("baseline", 2, "toy")
    assert (baseline.w_ptc, baseline.w_ctc, baseline.w_seg, baseline.w_reg, baseline.seed) == (0, 0, 0, 0, 2)
    assert baseline.replace(w_ptc=base.w_ptc, w_ctc=base.w_ctc, w_seg=base.w_seg, w_reg=base.w_reg, seed=0) == base


def test_the_readme_shows_the_table_that_was_made():
    made = (Path(__file__).parents[2] / "benchmarks" / "results" / "toy_table.md").read_text()
    assert made.strip() in (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.slow
def test_the_command_makes_the_table_and_continues(tmp_path, monkeypatch, capsys):
    arguments = [
        "toy_table.py",
        "--preset",
        "smoke",
        "--seeds",
        "0",
        "1",
        "--root",
        str(tmp_path / "runs"),
        "--images",
        "2",
    ]
    monkeypatch.setattr(sys, "argv", [*arguments, "--out", str(tmp_path)])
    toy_table.main()
    first = (tmp_path / "toy_table.csv").read_text()
    text = (tmp_path / "toy_table.md").read_text()
    assert len(first.splitlines()) == 1 + 2 * len(toy_table.ROWS)
    assert (tmp_path / "toy_table.png").stat().st_size > 1000
    assert all(f"| {row} |" in text for row in toy_table.ROWS) and "(d) full ToCo" in text
    monkeypatch.setattr(toy_table, "train", None)  # a second call finds every run finished
    toy_table.main()
    assert (tmp_path / "toy_table.csv").read_text() == first
    capsys.readouterr()
