"""Benchmark of the loader."""

import pytest
from helpers.benchmarks import tables, with_settings

from benchmarks import loader, run


def test_parts_of_a_training_sample(tmp_path, monkeypatch, capsys):
    with_settings(monkeypatch, loader, {"small": 2})
    run.main(["loader", "--repeats", "1", "--out", str(tmp_path)])
    table, text = tables(tmp_path, "loader")
    spent = table.set_index("part")["ms"]
    assert {"decode JPEG", "jitter", "resize and crop", "rest"} <= set(spent.index) and spent.index[-1] == "all"
    assert spent["all"] == pytest.approx(spent.drop("all").sum(), rel=1e-3) and (spent.drop("rest") >= 0).all()
    assert "images a second per process" in text and text in capsys.readouterr().out
