"""The table of all benchmarks."""

import json

import numpy as np
import pandas as pd
import pytest

from benchmarks import run, summary


def test_summary(tmp_path):
    with pytest.raises(FileNotFoundError, match="make bench"):
        summary.markdown(tmp_path)
    made = {"machine": "a machine", "versions": "torch 9", "command": "python -m benchmarks some"}
    files = {
        "crf": [
            {
                "setting": "photo",
                "kind": "seconds",
                "height": 375,
                "width": 500,
                "classes": 21,
                "dense CRF": 1.501,
                "lattice": 0.2,
                "one filtering": 0.1,
            },
            {"setting": "photo", "kind": "seconds", "height": 375, "width": 500, "classes": 5, "dense CRF": 9.0},
            {"setting": "photo", "kind": "exponent", "over": "pixels", "dense CRF": 1.02},
        ],
        "inference": [
            {"setting": "toy", "what": "multi-scale CAM", "to_floor": 1.1, "images_per_second": 7},
            {"setting": "vit_b", "what": "multi-scale CAM", "to_floor": 2},
            {"setting": "memory", "what": "64 images", "to_fewer": 1.01},
        ],
        "growth": [
            {
                "setting": "toy",
                "axis": axis,
                "value": value,
                "seconds": float(value) ** 3,
                "step_mb": float(value),
                "to_first": float(value) / 2,
            }
            for axis in ("size", "classes")
            for value in ("2", "4")
        ],
        "training_step": [
            {
                "setting": setting,
                "step": step,
                "part": "whole",
                "to_floor": floor,
                "to_fast": fast,
                "step_mb": memory,
                "peak_mb": 100 + memory,
            }
            for setting, fast in (("toy", 1.5), ("deit_tiny", 1.9), ("vit_b", 2.1))
            for step, floor, memory in (("fast", 1.2, 60), ("textbook", 3.0, 100), ("floor", 1.0, 50))
        ],
        "startup": [
            {"setting": "processes", "what": "import toco_lab", "cpu": 0.01},
            {"setting": "kernels", "what": "the same in a forked kernel", "to_base": 0.25},
            {"setting": "report", "what": "opening a report", "megabytes": 12.3, "wall": np.nan},
        ],
    }
    for name, rows in files.items():
        pd.DataFrame(rows).assign(**made).to_csv(tmp_path / f"{name}.csv", index=False)
    page = tmp_path / "speed.md"
    page.write_text(f"Before.\n\n{summary.BEGIN}\nold\n{summary.END}\n\nAfter.\n")
    table = summary.write(page, tmp_path)
    assert page.read_text() == f"Before.\n\n{summary.BEGIN}\n\n{table}\n{summary.END}\n\nAfter.\n"
    page.write_text("No markers.")
    with pytest.raises(ValueError, match="no place for the table"):
        summary.write(page, tmp_path)
    lines = table.splitlines()
    assert lines[2:-4] == [
        "| training step, x the bare encoder passes, toy | at most 2.50 | x 1.20 | yes | training_step |",
        "| training step, x the bare encoder passes, deit_tiny | at most 1.60 | x 1.20 | yes | training_step |",
        "| training step, x the bare encoder passes, vit_b | at most 1.10 | x 1.20 | **no** | training_step |",
        "| the same step written plainly, x ours, toy | - | x 1.50 | - | training_step |",
        "| the same step written plainly, x ours, deit_tiny | at least 1.90 | x 1.90 | yes | training_step |",
        "| the same step written plainly, x ours, vit_b | at least 2.20 | x 2.10 | **no**, the bare passes x 3.00 "
        "| training_step |",
        *[
            f"| {what}, {setting} | {wanted} | x {ratio} | {holds} | training_step |"
            for what, wanted, ratio, holds in (
                ("memory of a step, x that of the plain one", "at most 0.60", "0.60", "yes"),
                ("the same with all that the process has before", "-", "0.80", "-"),
            )
            for setting in ("toy", "deit_tiny", "vit_b")
        ],
        "| training step over pixels, exponent, toy | - | 1.50 | - | growth |",
        "| memory of a step over pixels, exponent, toy | - | 0.50 | - | growth |",
        "| training step, most classes, x fewest, toy, 4 to 2 | - | x 2.00 | - | growth |",
        "| multi-scale CAM, x the bare encoder passes, toy | at most 1.10 | x 1.10 | yes | inference |",
        "| multi-scale CAM, x the bare encoder passes, vit_b | at most 1.10 | x 2.00 | **no** | inference |",
        "| the same, images a second, toy | - | 7.00 | - | inference |",
        "| peak memory of an evaluation, x that of a quarter of the images | at most 1.05 | x 1.01 | yes | inference |",
        "| dense CRF, 375 x 500, 21 classes, 10 iterations | at most 1.50 s | 1.50 s | **no** | crf |",
        "| dense CRF over pixels, exponent (1: linear) | at most 1.10 | 1.02 | yes | crf |",
        "| `import toco_lab` beside torch and timm | at most 0.200 s | 0.010 s | yes | startup |",
        "| a notebook that imports this, in a forked kernel, x its own | at most 0.50 | x 0.25 | yes | startup |",
        "| size of a report | - | 12.3 MB | - | startup |",
    ], json.dumps(lines, indent=1)
    assert lines[-3] == "One thread, processor seconds; a machine; torch 9. Made by"
    assert lines[-1] == "    python -m benchmarks some"  # once, though every case has it


def test_every_target_has_a_case_and_the_page_shows_the_table():
    assert {target.case for target in summary.TARGETS} <= set(run.CASES)
    assert summary.markdown(run.RESULTS) in summary.PAGE.read_text()
