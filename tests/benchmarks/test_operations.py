"""Benchmark of operations: counts, which are the same on every machine."""

import torch
from helpers.benchmarks import tables, with_settings

from benchmarks import metrics, operations, run
from toco_lab.config import Config


def test_views_and_memory_are_no_operations_and_the_backward_pass_is_counted():
    weight, x = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4)

    def twice() -> None:
        weight.grad = None
        (x @ weight.T).relu().sum().backward()

    # forward: mm, relu, sum; backward: ones, threshold, mm (the sum's way back is a view)
    counted = operations.operations(twice)
    assert counted["aten::mm"] == 2 and counted["aten::relu"] == 1 and counted.total() == 6


def test_larger_stacks_of_layers_ask_for_fewer_operations(monkeypatch):
    monkeypatch.setattr(operations, "STACKS", {"one by one": 1, "together": 2**30})
    table = operations.measure(metrics.Setting("smoke", 48, images=1), 1).set_index("step")
    assert table.loc[metrics.FORWARD, "operations"] < table.loc["together", "operations"]
    assert 2 * table.loc["together", "operations"] < table.loc["one by one", "operations"]


def test_operations(tmp_path, monkeypatch):
    small = Config.preset("smoke").replace(cam_scales=(1.0, 0.5))
    with_settings(monkeypatch, operations, {"small": small})
    run.main(["operations", "--out", str(tmp_path)])
    table, text = tables(tmp_path, "operations")
    n = table.set_index(["precision", "step"])["operations"]
    assert n["fp32", "floor"] < n["fp32", "auxiliary"] < n["fp32", "fast"] < n["fp32", "textbook"]
    assert (n["bf16"] > n["fp32"]).all()
    casts = table.set_index(["precision", "step"])["casts"]
    assert casts["bf16", "fast"] < casts["bf16", "textbook"] and "| bf16 | ours | " in text
