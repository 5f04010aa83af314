"""A folder of predictions: what lies in it, the same bytes after a stop, and what it refuses."""

import csv
import json
import shutil

import numpy as np
import pytest
from helpers.labelled_runs import files_of
from PIL import Image

from toco_lab.data.classes import PALETTE
from toco_lab.figures.pictures import cam_pixels
from toco_lab.prediction import output
from toco_lab.prediction.folder import predict_folder
from toco_lab.prediction.output import file_words

OPTIONS = {"mask": "cam", "label_threshold": 0.3, "scores": True, "batch_size": 2, "sheet": 0, "progress": False}


def shown(folder) -> dict[str, bytes]:
    return {name: content for name, content in files_of(folder).items() if not name.startswith(".")}


def lines(folder) -> dict[str, dict[str, str]]:
    with (folder / "labels.csv").open(newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def test_what_lies_in_the_folder(model, photos, tmp_path):
    out = tmp_path / "out"
    done = predict_folder(model, [photos], out, **(OPTIONS | {"sheet": 60}))
    assert (done.made, done.kept, done.failed) == (5, 0, {})
    rows = lines(out)
    assert list(rows) == ["a", "b", "d", "e", "more/c"]
    for name, row in rows.items():
        path = next(photos.glob(f"{name}.*"))
        found = model.predict(path, mask="cam", label_threshold=0.3)
        height, width = found.mask.shape
        assert (row["file"], row["width"], row["height"]) == (path.name, str(width), str(height))
        assert row["present"] == ";".join(found.present)
        assert [float(row[f"score_{one}"]) for one in model.class_names] == pytest.approx(
            list(found.labels.values()), abs=1e-4
        )
        with Image.open(out / "masks" / f"{name}.png") as mask:
            assert mask.mode == "P" and mask.size == (width, height)
            assert mask.getpalette()[:21] == PALETTE[:7].flatten().tolist()
            assert (np.array(mask) == found.mask).mean() > 0.99  # batches round differently
        for one in found.present:
            overlay = np.array(Image.open(out / "cams" / f"{name}.{file_words(model.class_names)[one]}.png"))
            wanted = cam_pixels(found.image, found.cam(one))
            assert np.abs(overlay.astype(int) - wanted).max() <= 2
        with np.load(out / "scores" / f"{name}.npz") as soft:
            assert [model.class_names[number - 1] for number in soft["classes"]] == list(found.present)
    assert (out / "classes.txt").read_text().split("\n")[:-1] == list(model.class_names)
    record = json.loads((out / "protocol.json").read_text())
    assert record["checkpoint"] == model.checkpoint and record["made_with"]["model"] == "smoke"
    assert record["made_with"]["packages"]["torch"]
    page = (out / "contact_sheet.html").read_text()
    assert page.count("<article>") == 5 and "more/c" in page and "http" not in page
    assert (out / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")


def test_a_stopped_call_continues_and_ends_with_the_same_bytes(model, photos, tmp_path, monkeypatch):
    options = OPTIONS | {"sheet": 4}
    predict_folder(model, [photos], tmp_path / "whole", **options)
    whole = shown(tmp_path / "whole")
    real, saved = output.save_mask, []

    def save_three(path, mask):
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(path)
        real(path, mask)

    monkeypatch.setattr(output, "save_mask", save_three)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(model, [photos], tmp_path / "part", **options)
    assert len(lines(tmp_path / "part")) == 3 and not (tmp_path / "part" / "contact_sheet.html").exists()
    with (tmp_path / "part" / "labels.csv").open("a") as file:
        file.write("d,half a li")  # of a killed process
    monkeypatch.setattr(output, "save_mask", real)

    groups, predict_group = [], type(model).predict_group

    def watched(self, group, recipe):
        groups.append([name for name, _ in group])
        return predict_group(self, group, recipe)

    monkeypatch.setattr(type(model), "predict_group", watched)
    done = predict_folder(model, [photos], tmp_path / "part", **options)
    assert groups == [["d", "more/c"], ["e"]]  # the first two were finished; a group is made whole
    assert (done.made, done.kept) == (2, 3)
    assert shown(tmp_path / "part") == whole
    again = predict_folder(model, [photos], tmp_path / "part", **options)
    assert (again.made, again.kept) == (0, 5) and len(groups) == 2 and shown(tmp_path / "part") == whole


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
def test_boxes_are_drawn_and_can_be_read_as_coco(model, photos, tmp_path):
    from pycocotools.coco import COCO

    out = tmp_path / "out"
    options = OPTIONS | {"boxes": True, "background_threshold": 0.3}
    predict_folder(model, [photos], out, **options)
    coco, rows = COCO(str(out / "instances.json")), lines(out)
    assert [(info["file_name"], info["width"], info["height"]) for info in coco.imgs.values()] == [
        (row["file"], int(row["width"]), int(row["height"])) for row in rows.values()
    ]
    assert [category["name"] for category in coco.cats.values()] == list(model.class_names) and coco.anns
    for number, (name, row) in enumerate(rows.items(), start=1):
        mask, found = np.array(Image.open(out / "masks" / f"{name}.png")), coco.imgToAnns[number]
        painted = np.zeros_like(mask)
        for item in found:
            where = coco.annToMask(item) > 0
            painted[where] = item["category_id"]
            y, x = where.nonzero()
            assert item["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1] and item["area"] == where.sum()
            class_name = model.class_names[item["category_id"] - 1]
            with np.load(out / "scores" / f"{name}.npz") as soft:
                cam = soft["scores"][soft["classes"].tolist().index(item["category_id"])].astype(float)
            assert item["score"] == pytest.approx(cam[where].mean() * float(row[f"score_{class_name}"]), abs=1e-3)
        assert np.array_equal(painted[painted > 0], mask[painted > 0])
        assert ((mask > 0) & (painted == 0)).sum() < 0.05 * mask.size  # what is too small to be an object
        with Image.open(out / "boxes" / f"{name}.png") as picture:
            pixels = np.array(picture)
        for item in found[:1]:  # the surest lies on top
            x, y, width, _ = item["bbox"]
            assert (pixels[y, x : x + width] == PALETTE[item["category_id"]]).all()
    whole = shown(out)
    (out / "boxes" / "b.json").unlink()
    assert predict_folder(model, [photos], out, **options).made == 1 and shown(out) == whole


def test_a_changed_image_and_a_lost_file_are_made_again(model, photos, tmp_path, samples):
    out = tmp_path / "out"
    predict_folder(model, [photos], out, **OPTIONS)
    whole = shown(out)
    (out / "masks" / "b.png").unlink()
    assert predict_folder(model, [photos], out, **OPTIONS).made == 1 and shown(out) == whole
    Image.fromarray(np.ascontiguousarray(samples[0].raw[::-1])).save(photos / "a.png")
    done = predict_folder(model, [photos], out, **OPTIONS)
    assert (done.made, done.kept) == (1, 4)
    assert lines(out)["a"]["file_hash"] not in whole["labels.csv"].decode()
    assert shown(out)["masks/b.png"] == whole["masks/b.png"]


def test_a_corrupt_image_stops_nothing_and_is_tried_again(model, photos, tmp_path):
    out, good = tmp_path / "out", (photos / "b.png").read_bytes()
    (photos / "b.png").write_bytes(good[: len(good) // 2])
    (photos / "f.png").write_text("no picture")
    (photos / "tiny.png").write_bytes(b"")
    Image.new("RGB", (4, 4)).save(photos / "tiny.png")
    done = predict_folder(model, [photos], out, **OPTIONS)
    assert (done.made, done.kept) == (4, 0) and set(lines(out)) == {"a", "d", "e", "more/c"}
    assert list(done.failed) == [str(photos / name) for name in ("f.png", "b.png", "tiny.png")]
    assert "no format fits its bytes" in done.failed[str(photos / "f.png")]
    assert "shorter than a patch" in done.failed[str(photos / "tiny.png")]
    before = shown(out)
    again = predict_folder(model, [photos], out, **OPTIONS)
    assert (again.made, again.kept, set(again.failed)) == (0, 4, set(done.failed)) and shown(out) == before
    (photos / "b.png").write_bytes(good)
    mended = predict_folder(model, [photos], out, **OPTIONS)
    assert mended.made == 1 and len(mended.failed) == 2 and set(lines(out)) == {"a", "b", "d", "e", "more/c"}


def test_another_protocol_is_refused_with_the_remedy(model, photos, tmp_path):
    out = tmp_path / "out"
    predict_folder(model, [photos / "a.png"], out, **OPTIONS)
    before = shown(out)
    with pytest.raises(
        ValueError, match=r"label_threshold \(0.3 there, 0.5 wanted\)\. Delete .*out, or choose another"
    ):
        predict_folder(model, [photos], out, **(OPTIONS | {"label_threshold": 0.5}))
    with pytest.raises(ValueError, match=r"mask \('cam' there, 'seg' wanted\)"):
        predict_folder(model, [photos], out, mask="seg", sheet=0, progress=False)
    assert shown(out) == before
    more = predict_folder(model, [photos], out, **(OPTIONS | {"batch_size": 4}))  # images and batches may be others
    assert more.made == 4
    with pytest.raises(ValueError, match=r"holds files and no protocol\.json"):
        predict_folder(model, [photos], photos, **OPTIONS)


def test_the_outputs_may_lie_among_the_images(model, photos):
    out = photos / "predicted"
    assert predict_folder(model, [photos], out, **OPTIONS).made == 5
    assert predict_folder(model, [photos], out, **OPTIONS).kept == 5


def test_a_damaged_table_is_named(model, photos, tmp_path):
    out = tmp_path / "out"
    predict_folder(model, [photos / "a.png"], out, **OPTIONS)
    (out / "labels.csv").write_text("image,file\na,a.png\n")
    with pytest.raises(ValueError, match=r"labels\.csv is damaged: .*\(no column file_hash"):
        predict_folder(model, [photos / "a.png"], out, **OPTIONS)
    shutil.copy(out / "masks" / "a.png", out / "labels.csv")
    with pytest.raises(ValueError, match=r"labels\.csv is damaged: text"):
        predict_folder(model, [photos / "a.png"], out, **OPTIONS)


def test_classes_have_words_that_a_file_name_can_hold():
    assert file_words(["hot dog", "a/b", "a_b", "Ärger"]) == {
        "hot dog": "hot_dog", "a/b": "a_b_2", "a_b": "a_b_3", "Ärger": "Ärger",
    }  # fmt: skip
