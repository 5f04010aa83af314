"""Benchmark of the over-smoothing metrics."""

import pytest
import torch
from helpers.benchmarks import tables, with_settings

from benchmarks import metrics, run
from toco_lab.smoothing.catalogue import METRICS


def test_metrics(tmp_path, monkeypatch, capsys):
    with_settings(monkeypatch, metrics, {"smoke": metrics.Setting("smoke", 96, images=2)})
    run.main(["metrics", "--repeats", "1", "--out", str(tmp_path)])
    table, text = tables(tmp_path, "metrics")
    whole, each = (table[table["kind"] == kind] for kind in ("whole", "metric"))
    assert whole["metric"].tolist() == ["forward pass", "all metrics", "reading the layers"]
    assert whole["to_forward"].iloc[0] == 1
    assert set(zip(each["metric"], each["variant"], strict=True)) == {*METRICS, metrics.RANK_ME}
    assert each["share"].sum() == pytest.approx(1, abs=1e-3)
    assert (each["alone_seconds"] > 0).all()  # none was left out for want of labels or attention
    assert f"of {len(METRICS) + 1} that cost most" in text and text in capsys.readouterr().out


def test_what_metrics_share_counts_for_the_first(clock, monkeypatch):
    @property
    def slow(view):
        if "paid" not in view.__dict__:
            view.__dict__["paid"] = True
            clock[0] += 5
        return view.tokens.sum()

    def metric(function, needs=()):
        return type("Metric", (), {"function": staticmethod(function), "needs": needs})

    view = metrics.TokenView(torch.rand(1, 4, 3), (2, 2))
    monkeypatch.setattr(metrics.TokenView, "x", slow)
    made = {("a", ""): metric(lambda view: view.x), ("b", ""): metric(lambda view: view.x)}
    monkeypatch.setattr(metrics, "METRICS", made | {("c", ""): metric(lambda view: view.x, ("label",))})
    found = metrics.metric_seconds([metrics.Layer("after block", "none", 1, view)]).set_index("metric")
    assert found["in_order"].tolist() == [5, 0, 0, 0] and found["alone"].tolist() == [5, 5, 0, 0]  # no label for c
