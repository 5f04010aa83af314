"""Benchmark of the CAM explorer's moves."""

from helpers.benchmarks import tables, with_settings

from benchmarks import cam_explorer, run
from toco_lab.config import Config

SMOKE = Config.preset("smoke")


def test_moves_of_the_cam_explorer(tmp_path, monkeypatch):
    with_settings(monkeypatch, cam_explorer, {"small": SMOKE})
    monkeypatch.setattr(cam_explorer, "MOVES", 2)
    run.main(["cam_explorer", "--repeats", "1", "--out", str(tmp_path)])
    table, text = tables(tmp_path, "cam_explorer")
    row = table.iloc[0]
    assert 0 < row["move_ms"] <= row["p95_ms"] and row["first_ms"] > 0
    assert f"| {SMOKE.crop_size} x {SMOKE.crop_size}, 6 classes |" in text
