"""Benchmark of passes in pieces."""

from helpers.benchmarks import tables, with_settings

from benchmarks import pieces, run


def test_pieces(tmp_path, monkeypatch, capsys):
    with_settings(monkeypatch, pieces, {"small": ("vit_tiny_patch16_224", 32, 6), "other": ("none", 1, 1)})
    run.main(["pieces/small", "--repeats", "1", "--out", str(tmp_path)])
    table, text = tables(tmp_path, "pieces")
    assert table["at_once"].tolist() == [6, 3, 1] and table["tokens"].tolist() == [24, 12, 4]
    assert table["to_all"].iloc[0] == 1 and (table["seconds"] > 0).all()
    assert "| vit_tiny_patch16_224, 6 images of 32 | 3 | 12 | " in text and text in capsys.readouterr().out
