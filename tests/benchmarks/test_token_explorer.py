"""Benchmark of the token explorer's answers."""

import pytest
from helpers.benchmarks import tables, with_settings

from benchmarks import run, token_explorer


@pytest.mark.browser
def test_answers_of_the_token_explorer(tmp_path, monkeypatch):
    if missing := token_explorer.missing():
        pytest.skip(missing)
    monkeypatch.setattr(token_explorer, "CLICKS", 3)
    with_settings(monkeypatch, token_explorer, {"small": "vit_tiny_patch16_224"})
    run.main(["token_explorer", "--repeats", "1", "--out", str(tmp_path)])
    table, text = tables(tmp_path, "token_explorer")
    assert table["models"].tolist() == [1, 1, 2, 2] and (table["count"] == 3).all()
    assert ((table["drawn_median"] > 0) & (table["drawn_median"] <= table["frame_p95"])).all()
    assert "13 layers" in text
