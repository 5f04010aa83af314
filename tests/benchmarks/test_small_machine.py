"""Benchmark of what a small machine gains by."""

from helpers.benchmarks import tables, with_settings

from benchmarks import run, small_machine


def test_small_machine(tmp_path, monkeypatch, capsys):
    seen = []
    step = small_machine._step

    def counted(encoder, batch, *, is_half):
        step(encoder, batch, is_half=is_half)
        seen.append((is_half, sum(weight.grad is not None for weight in encoder.blocks.parameters())))

    monkeypatch.setattr(small_machine, "_step", counted)
    with_settings(monkeypatch, small_machine, {"small": ("vit_tiny_patch16_224", 32, 2, (0, 12))})
    run.main(["small_machine", "--repeats", "1", "--out", str(tmp_path)])
    table, text = tables(tmp_path, "small_machine")
    assert list(zip(table["precision"], table["frozen_blocks"], strict=True)) == [
        ("fp32", 0), ("fp32", 12), ("bf16", 0), ("bf16", 12),
    ]  # fmt: skip
    assert seen[:4] == seen[4:] == [(False, 144), (False, 0), (True, 144), (True, 0)]
    assert table["to_whole"].iloc[0] == 1 and (table["seconds"] > 0).all()
    assert "| vit_tiny_patch16_224, 2 crops of 32 | bf16 | 12 | " in text and text in capsys.readouterr().out
