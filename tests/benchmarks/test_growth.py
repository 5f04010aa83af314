"""Benchmark of growth: its axes and exponents."""

import numpy as np
import pandas as pd
import pytest
from helpers.benchmarks import tables, with_settings

from benchmarks import growth, run
from toco_lab.config import Config

SMOKE = Config.preset("smoke")


@pytest.mark.parametrize(("axis", "power"), [("size", 1.5), ("batch", 3.0)])
def test_exponents_of_a_step(axis, power):
    values = np.array([2.0, 4, 5])
    rows = pd.DataFrame(
        {"axis": axis, "value": ["2", "4", "5"], "seconds": values**3, "floor_seconds": 1.0, "step_mb": np.nan}
    )
    assert growth.exponents(rows) == pytest.approx({"step": power, "floor": 0})
    assert growth.exponents(rows.assign(step_mb=7 * values**6))["memory"] == pytest.approx(2 * power)


def test_growth(tmp_path, monkeypatch, capsys):
    base = SMOKE.replace(view2_size=32)
    axes = {
        "size": {side: base.replace(crop_size=side) for side in (64, 96)},
        "classes": {count: base.replace(num_classes=count) for count in (6, 9)},
    }
    compared = {"toy": base.replace(depth=4), "wide": base.replace(embed_dim=32)}
    with_settings(monkeypatch, growth, {"toy": axes, "backbone": {"backbone": compared}})
    monkeypatch.setattr(growth, "in_a_fresh_process", lambda _, cfg, __: (400.0, cfg.crop_size / 2))
    run.main(["growth/toy", "--repeats", "1", "--out", str(tmp_path)])
    monkeypatch.setattr(growth, "in_a_fresh_process", lambda *_: (np.nan, np.nan))  # no Linux
    run.main(["growth/backbone", "--repeats", "1", "--out", str(tmp_path)])
    table, text = tables(tmp_path, "growth")
    found = {(setting, axis): rows for (setting, axis), rows in table.groupby(["setting", "axis"])}
    assert found["toy", "size"]["value"].tolist() == ["64", "96"]
    assert found["backbone", "backbone"]["value"].tolist() == ["toy", "wide"]
    assert all(rows["to_first"].iloc[0] == 1 and (rows["to_floor"] > 0).all() for rows in found.values())
    assert (
        found["toy", "size"]["step_mb"].tolist() == [32, 48] and found["backbone", "backbone"]["peak_mb"].isna().all()
    )
    assert "memory 0.50." in text and "## backbone" in text and text in capsys.readouterr().out


def test_the_axes_of_growth_change_one_number_at_a_time():
    axes = growth.SETTINGS["deit_tiny"]
    assert [cfg.crop_size for cfg in axes["size"].values()] == [224, 320, 448]
    assert [cfg.batch_size for cfg in axes["batch"].values()] == [1, 2, 4, 8, 16]
    assert [cfg.num_classes for cfg in axes["classes"].values()] == [20, 80, 254]
    sizes = axes["size"].values()
    assert {(cfg.batch_size, cfg.num_classes, cfg.backbone) for cfg in sizes} == {(2, 20, "deit_tiny_patch16_224")}
