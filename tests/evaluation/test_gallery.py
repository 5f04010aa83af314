"""Galleries of runs: what is kept of a map, and which runs stand in one row."""

import numpy as np
import pytest
from helpers.finished_runs import make_gallery

from toco_lab.config import Config
from toco_lab.evaluation.evaluate import evaluate_model, evaluate_run, validator
from toco_lab.evaluation.example_maps import gallery_rows
from toco_lab.evaluation.gallery import (
    EDGE,
    NUM_IMAGES,
    Gallery,
    joint_rows,
    load_gallery,
    save_gallery,
    side_by_side,
)
from toco_lab.method.model import ToCo
from toco_lab.presets import BASELINE
from toco_lab.runs.run_dir import RunDir
from toco_lab.vocabulary import CAM, CAM_AUX, SEG, TITLES


@pytest.fixture
def run(tmp_path):
    return RunDir.create(Config.preset("smoke"), tmp_path, name="a")


def test_maps_come_back_as_they_were(run, rng):
    rows = make_gallery(0.3)
    rows["one"]["CAM"] = rng.random((8, 12)).astype(np.float32)
    rows["one"]["segmentation"] = rng.integers(0, 256, (8, 12))  # 255 among them
    save_gallery(run, rows, "abc")
    found = load_gallery(run)
    assert found.checkpoint == "abc" and list(found.rows) == ["one", "two"]
    one = found.rows["one"]
    assert set(one) == set(rows["one"])
    assert np.abs(one["CAM"] - rows["one"]["CAM"]).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(one["segmentation"], rows["one"]["segmentation"])
    assert np.array_equal(one["truth"], rows["one"]["truth"])
    assert np.abs(found.rows["two"]["image"].astype(int) - 130).max() <= 6  # lossy
    assert load_gallery(RunDir.create(Config.preset("smoke"), run.path.parent, name="none")) is None


def test_large_maps_are_shrunk_and_labels_are_not_mixed(run):
    cam, label = np.zeros((300, 2 * EDGE), np.float32), np.zeros((300, 2 * EDGE), np.int64)
    cam[:, ::2], label[:, EDGE:] = 1.0, 20
    image = np.zeros((300, 2 * EDGE, 3), np.uint8)
    save_gallery(run, {"x": {"image": image, "truth": None, "CAM": cam, "segmentation": label}}, "abc")
    row = load_gallery(run).rows["x"]
    assert row["image"].shape == (150, EDGE, 3) and row["CAM"].shape == (150, EDGE) and "truth" not in row
    assert row["CAM"].mean() == pytest.approx(0.5, abs=0.01)  # the mean of each pair of columns
    assert set(np.unique(row["segmentation"])) == {0, 20} and (row["segmentation"] == 20).mean() == 0.5


def test_maps_of_one_checkpoint_are_joined_and_of_another_replaced(run):
    parts = make_gallery(0.3)
    seg = {name: {key: row[key] for key in ("image", "segmentation")} for name, row in parts.items()}
    cam = {name: {key: row[key] for key in ("image", "CAM")} for name, row in parts.items()}
    save_gallery(run, cam, "abc")
    save_gallery(run, seg, "abc")
    assert set(load_gallery(run).rows["one"]) == {"image", "CAM", "segmentation"}
    save_gallery(run, cam, "def")
    assert set(load_gallery(run).rows["one"]) == {"image", "CAM"}


@pytest.mark.parametrize("damage", [lambda raw: raw[:100], lambda raw: b"no zip", lambda raw: b""])
def test_a_damaged_file_is_named_with_the_remedy(run, damage):
    save_gallery(run, make_gallery(0.3), "abc")
    run.gallery_path.write_bytes(damage(run.gallery_path.read_bytes()))
    with pytest.raises(ValueError, match=r"gallery\.npz cannot be read.*toco_lab evaluate"):
        load_gallery(run)
    save_gallery(run, make_gallery(0.3), "abc")
    assert len(load_gallery(run).rows) == 2


def test_only_the_same_picture_stands_in_one_row():
    a, b = make_gallery(0.2), make_gallery(0.8)
    b["two"]["image"] = b["two"]["image"] + 1
    del b["one"]["auxiliary CAM"]
    rows = joint_rows({"a": Gallery("x", a), "b": Gallery("y", b)})
    assert [(row.name, sorted(row.maps["CAM"])) for row in rows] == [
        ("one", ["a", "b"]),
        ("two", ["a"]),
        ("two", ["b"]),
    ]
    assert sorted(rows[0].maps["auxiliary CAM"]) == ["a"] and list(rows[0].maps) == [
        "CAM",
        "auxiliary CAM",
        "segmentation",
    ]
    assert rows[0].maps["CAM"]["b"][0, 0] == np.float32(0.8)


def test_one_kind_of_map_of_several_runs_stands_beside_each_other(tmp_path, rng):
    picture, truth = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8), np.zeros((8, 8), np.int64)
    runs = {}
    for name, score in (("first", 0.2), ("second", 0.6)):
        runs[name] = RunDir.create(Config.preset("smoke"), tmp_path, name=name)
        maps = {"image": picture, "truth": truth, "CAM": np.full((8, 8), score), "auxiliary CAM": np.ones((8, 8))}
        save_gallery(runs[name], {"scene": maps}, "hash")
    (row,) = side_by_side(runs)
    assert list(row) == ["image", "truth", "first", "second"]
    assert [row[name].mean() for name in runs] == pytest.approx([0.2, 0.6])
    assert side_by_side(runs, "auxiliary CAM")[0]["second"].min() == 1
    bare = RunDir.create(Config.preset("smoke"), tmp_path, name="bare")
    with pytest.raises(ValueError, match=r"bare has no gallery yet; `python -m toco_lab evaluate .*bare` writes it"):
        side_by_side(runs | {"bare": bare})


def test_evaluation_keeps_the_maps_that_gallery_rows_draws():
    """The maps of the batch are those of each image alone."""
    cfg = Config.preset("smoke")
    model = ToCo(cfg).eval()
    kept = evaluate_model(model, cfg, targets=("cam", "seg"), gallery=3, progress=False).gallery
    alone = gallery_rows(model, cfg, 3)
    assert len(kept) == 3 and evaluate_model(model, cfg, targets=("seg",), progress=False).gallery == {}
    for row, wanted in zip(kept.values(), alone, strict=True):
        assert list(row) == list(wanted)
        assert np.array_equal(row["image"], wanted["image"]) and np.array_equal(row["truth"], wanted["truth"])
        for title in ("CAM", "auxiliary CAM"):
            assert row[title] == pytest.approx(wanted[title], abs=1e-4)
            assert 0 <= row[title].min() and row[title].max() <= 1 + 1e-6


def test_an_untrained_decoder_is_neither_drawn_nor_validated():
    cfg = Config.preset("smoke").replace(**BASELINE, eval_crf=True)
    model = ToCo(cfg).eval()
    kept = evaluate_model(model, cfg, gallery=1, progress=False).gallery
    for row in [*gallery_rows(model, cfg, 1), *kept.values()]:
        assert TITLES[CAM] in row and TITLES[SEG] not in row
    assert set(validator(cfg)(model, 1)) == {CAM, CAM_AUX}


def test_every_evaluated_run_has_a_gallery(smoke_run):
    found = load_gallery(smoke_run)
    assert found.checkpoint == smoke_run.read_json("protocol")["cam"]["checkpoint"]
    assert len(found.rows) == min(NUM_IMAGES, smoke_run.config().val_images)
    assert all({"CAM", "auxiliary CAM", "CAM as label", "segmentation"} <= set(row) for row in found.rows.values())


def test_another_split_leaves_the_gallery_alone(smoke_run, tmp_path):
    import shutil

    copy = RunDir(shutil.copytree(smoke_run.path, tmp_path / "copy"))
    before = copy.gallery_path.read_bytes()
    evaluate_run(copy, targets=("seg",), split="train", progress=False)
    assert copy.gallery_path.read_bytes() == before
