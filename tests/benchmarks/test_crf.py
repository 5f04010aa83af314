"""Benchmark of the dense CRF: its picture, its steps, its growth."""

import pandas as pd
import pytest
import torch
from helpers.benchmarks import tables, with_settings

from benchmarks import crf, run
from toco_lab.method.lattice import Lattice, bilateral_features


def test_photo_has_as_many_vertices_as_photographs_have():
    image = crf.photo(60, 80)
    assert image.shape == (3, 60, 80) and (image == image.round()).all() and 0 <= image.min() and image.max() <= 255
    lattice = Lattice(bilateral_features(crf.photo(240, 320)[None], crf.SIGMA_XY, crf.SIGMA_RGB))
    vertices = len(lattice._splat[2])
    assert 0.15 < vertices / (240 * 320) < 0.5


def test_filter_steps_leave_the_filter_as_it_is(clock, monkeypatch):
    bag = torch.nn.functional.embedding_bag
    lengths = []

    def slow(*arguments, **options):
        clock[0] += 10 ** len(lengths)
        lengths.append(len(arguments[0]))
        return bag(*arguments, **options)

    image = crf.photo(8, 9)
    lattice, rows = Lattice(bilateral_features(image[None], 5, 50)), torch.rand(72, 3)
    expected = lattice.filter_rows(rows)
    monkeypatch.setattr(torch.nn.functional, "embedding_bag", slow)
    with crf.filter_steps() as seconds:
        found = lattice.filter_rows(rows)
    torch.testing.assert_close(found, expected)
    # splat, six axes, slice: ten times as long each as the one before
    assert seconds == {"splat": 1, "blur": 1_111_110, "slice": 10_000_000}
    assert torch.nn.functional.embedding_bag is slow


def test_growth_of_the_crf():
    rows = [
        {
            "pixels": pixels,
            "classes": classes,
            crf.BUILD: pixels,
            crf.FILTER: pixels**2 * classes,
            crf.CRF: classes**0.5,
        }
        for pixels, classes in ((10, 4), (20, 1), (20, 4), (20, 9), (70, 4))
    ]
    table = crf.growth(pd.DataFrame(rows), 4).set_index("over")
    assert table.loc["pixels"].tolist() == pytest.approx([3, 1, 2, 0])
    assert table.loc["classes"].tolist() == pytest.approx([3, 0, 1, 0.5])


def test_crf(tmp_path, monkeypatch, capsys):
    sizes = ((12, 16), (24, 32))
    with_settings(monkeypatch, crf, {"small": crf.Setting(sizes, classes=(1, 3), many=3, profiled=(24, 32))})
    run.main(["crf", "--repeats", "1", "--out", str(tmp_path)])
    table, text = tables(tmp_path, "crf")
    times = table[table["kind"] == "seconds"]
    assert times["pixels"].tolist() == [192, 768, 768] and times["classes"].tolist() == [3, 3, 1]
    assert table.query("kind == 'exponent'")["over"].tolist() == ["pixels", "classes"]
    shares = table.query("kind == 'share'").set_index("part")["share"]
    assert list(shares.index) == ["construction", "splat", "blur", "slice", "softmax", "rest"]
    assert shares.sum() == pytest.approx(1, abs=1e-3) and (shares > 0).all()
    assert "| 24 x 32 | 1 | " in text and text in capsys.readouterr().out
