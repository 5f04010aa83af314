"""COCO masks from an instances json: painting on tiny annotations, the cache, and the real samples if there."""

import os

import numpy as np
import pytest
from helpers.coco import CATEGORIES, box, crowd, make_coco
from helpers.folders import SAMPLES, classes_of, needs_samples
from PIL import Image

from toco_lab.config import Config
from toco_lab.data.classes import COCO_CLASSES, DataError
from toco_lab.data.coco_json import class_numbers
from toco_lab.data.coco_masks import CACHE, CocoMasks, paint_mask
from toco_lab.data.image_labels import label_of_mask
from toco_lab.data.readers import open_dataset

# pycocotools' own arrays do not know a keyword of NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


# --- numbers and painting ---------------------------------------------------------------------------------------------


def test_the_80_classes_are_the_sorted_ids():
    numbers = class_numbers(reversed(CATEGORIES))
    assert (numbers[1], numbers[11], numbers[13], numbers[44], numbers[90]) == (1, 11, 12, 40, 80)
    assert COCO_CLASSES[numbers[90] - 1] == "toothbrush" and COCO_CLASSES[numbers[18] - 1] == "dog"
    assert class_numbers([{"id": 7, "name": "cat"}]) == {7: 16}, "names say which class it is, and some may be missing"
    with pytest.raises(DataError, match=r"category 1 is 'Person', which is no class of COCO, did you mean 'person'\?"):
        class_numbers([{"id": 1, "name": "Person"}])
    with pytest.raises(DataError, match=r"category 2, 'cat', stands twice"):
        class_numbers([{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}])


@pytest.mark.parametrize("crowds", ["class", "ignore"])
def test_small_objects_lie_on_large_ones_and_all_on_crowds(crowds):
    outlines = {1: np.s_[0:4, 0:4], 2: np.s_[0:2, 0:2], 3: np.s_[1:3, 1:3], 4: np.s_[3:4, 3:4]}

    def outline(item):
        found = np.zeros((4, 5), np.uint8)
        found[outlines[item["id"]]] = 1
        return found

    items = [{"id": n, "category_id": 10 * n, "iscrowd": int(n == 4), "area": area}
             for n, area in ((3, 4), (4, 1), (2, 4), (1, 16))]  # fmt: skip
    mask = paint_mask(items, {10: 1, 20: 2, 30: 3, 40: 4}, outline, (4, 5), crowds=crowds)
    # 2 and 3 are equally large: the later id is on top; the crowd, though smallest, is under 1
    assert mask.tolist() == [[2, 2, 1, 1, 0], [2, 3, 3, 1, 0], [1, 3, 3, 1, 0], [1, 1, 1, 1, 0]]
    alone = paint_mask([items[1]], {40: 4}, outline, (4, 5), crowds=crowds)
    assert alone[3, 3] == (4 if crowds == "class" else 255) and np.count_nonzero(alone) == 1


# --- the reader -------------------------------------------------------------------------------------------------------


def test_masks_and_names_come_from_the_json(tmp_path):
    cfg = make_coco(tmp_path, [box(1, 90, 0, 0, 20, 10), box(2, 18, 5, 2, 9, 6), crowd(3, 1, 25, 20, 30)])
    reader = open_dataset(cfg, "train")
    assert reader.names == ["COCO_train2014_000000000001"]
    mask = np.full((20, 30), 0)
    mask[:, :25], mask[0:10, 0:20], mask[2:6, 5:9] = 1, 80, 17
    assert np.array_equal(reader.mask(0), mask)
    assert classes_of(reader.image_label(0)) == [1, 17, 80]
    assert classes_of(open_dataset(cfg.replace(label_source="annotations"), "train").image_label(0)) == [1, 17, 80]
    ignoring = cfg.replace(crowds="ignore")
    mask[mask == 1] = 255
    assert np.array_equal(open_dataset(ignoring, "train").mask(0), mask)
    assert classes_of(open_dataset(ignoring.replace(label_source="annotations"), "train").image_label(0)) == [17, 80]


def test_the_cache_is_used_and_follows_the_json(tmp_path, monkeypatch):
    cfg = make_coco(tmp_path, [box(1, 90, 0, 0, 20, 10)])
    first = open_dataset(cfg, "train").mask(0)
    monkeypatch.setattr(CocoMasks, "_coco", property(lambda self: pytest.fail("the json is read again")))
    assert np.array_equal(open_dataset(cfg, "train").mask(0), first)
    monkeypatch.undo()
    make_coco(tmp_path, [box(1, 89, 0, 0, 20, 10)])
    assert np.unique(open_dataset(cfg, "train").mask(0)).tolist() == [0, 79]
    assert len(list((tmp_path / CACHE).iterdir())) == 2


def test_the_cache_of_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    cfg = make_coco(tmp_path / "data", [box(1, 90, 0, 0, 20, 10)])
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    open_dataset(cfg, "train").mask(0)
    assert not (tmp_path / "data" / CACHE).exists()
    assert len(list((tmp_path / "cache/toco_lab" / CACHE).glob("*/*.png"))) == 1


def test_ready_made_masks_win_and_raw_ids_are_refused(tmp_path):
    cfg = make_coco(tmp_path, [box(1, 90, 0, 0, 20, 10)])
    (tmp_path / "SegmentationClass/train2014").mkdir(parents=True)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.txt").write_text("COCO_train2014_000000000001\n")
    path = tmp_path / "SegmentationClass/train2014/COCO_train2014_000000000001.png"
    Image.fromarray(np.full((20, 30), 80, np.uint8)).save(path)
    assert np.unique(open_dataset(cfg, "train").mask(0)).tolist() == [80]
    Image.fromarray(np.full((20, 30), 90, np.uint8)).save(path)  # the id of toothbrush instead of its number
    with pytest.raises(DataError, match=r"holds \[90\]; allowed are 0..80 and 255. .*not the annotation's ids 1..90"):
        open_dataset(cfg, "train").mask(0)


def test_a_list_that_names_an_image_without_annotation(tmp_path):
    cfg = make_coco(tmp_path, [box(1, 90, 0, 0, 20, 10)])
    (tmp_path / "lists").mkdir()
    names = [f"COCO_train2014_{number:012d}" for number in (1, 2)]
    (tmp_path / "lists/train.txt").write_text("\n".join(names))
    with pytest.raises(DataError, match=rf"no mask for '{names[1]}'"):
        open_dataset(cfg, "train")


def test_ready_made_and_painted_masks_never_mix(tmp_path):
    cfg = make_coco(tmp_path, [box(1, 90, 0, 0, 20, 10)]).replace(label_source="annotations")
    (tmp_path / "SegmentationClass/val2014").mkdir(parents=True)
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "SegmentationClass/val2014/other.png")
    reader = open_dataset(cfg, "train")
    assert reader.mask(0) is None and reader.has_masks() == [False] and classes_of(reader.image_label(0)) == [80]


def test_errors(tmp_path):
    cfg = make_coco(tmp_path, [box(1, 90, 0, 0, 20, 10) | {"segmentation": []}])
    with pytest.raises(DataError, match=r"annotation 1 of .*instances_train2014.json has no readable outline"):
        open_dataset(cfg, "train").mask(0)
    make_coco(tmp_path, [], categories=[{"id": 1, "name": "crack"}])
    with pytest.raises(DataError, match=r"is not COCO: category 1 is 'crack', .*read them as a folder"):
        open_dataset(cfg, "train")
    (tmp_path / "annotations/instances_train2014.json").write_text("[]")
    with pytest.raises(DataError, match=r"is no instances json .*annotations_trainval2014.zip"):
        open_dataset(cfg, "train")
    (tmp_path / "annotations/instances_train2014.json").unlink()
    with pytest.raises(DataError, match=r"no list .*lists/train.txt"):
        open_dataset(cfg, "train")
    with pytest.raises(DataError, match=r"needs COCO's .*annotations/instances_\*.json"):
        open_dataset(cfg.replace(label_source="annotations"), "train")


# --- real samples -----------------------------------------------------------------------------------------------------


@needs_samples
@pytest.mark.data
def test_painted_masks_of_the_samples_are_near_the_ready_made_ones(tmp_path):
    """The json of the samples has polygons made from the masks: foreground IoU 0.946 on average, crowds apart."""
    sample = SAMPLES / "coco_sample"
    for name in ("coco2014", "lists"):
        (tmp_path / name).symlink_to(sample / name)
    (tmp_path / "annotations").mkdir()
    for path in (sample / "annotations").iterdir():  # copies: the cache lies beside their folder
        (tmp_path / "annotations" / path.name).write_bytes(path.read_bytes())
    cfg, overlaps, agree = Config.preset("coco_vit_b"), [], []
    for split in ("train", "val"):
        painted = open_dataset(cfg.replace(data_root=str(tmp_path)), split)
        ready = open_dataset(cfg.replace(data_root=str(sample)), split)
        for index in range(0, len(ready), 4):
            first, second = painted.mask(index), ready.mask(index)
            overlaps.append(((first > 0) & (second > 0)).sum() / ((first > 0) | (second > 0)).sum())
            both = (first > 0) & (second > 0)
            agree.append((first == second)[both].mean())
            assert np.array_equal(label_of_mask(first, 80), label_of_mask(second, 80)), ready.names[index]
    assert np.mean(overlaps) == pytest.approx(0.946, abs=0.02) and min(overlaps) > 0.6
    assert np.mean(agree) > 0.97, "other classes than the ready-made masks"
