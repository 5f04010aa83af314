"""COCO's json with something missing, doubled or impossible: read by a stated rule, or refused with file and entry."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.coco import box, crowd, make_coco
from helpers.folders import SAMPLES, classes_of
from PIL import Image

from toco_lab.commands.app import main
from toco_lab.data.classes import DataError
from toco_lab.data.coco_masks import CocoMasks
from toco_lab.data.prepare_coco import prepare_coco
from toco_lab.data.readers import open_dataset

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
BOXES = [box(1, 90, 0, 0, 20, 10), box(2, 18, 5, 2, 9, 6)]
FILE = "instances_train2014.json"


def without(item: dict, *fields: str) -> dict:
    return {field: value for field, value in item.items() if field not in fields}


def test_iscrowd_and_area_may_be_missing(tmp_path):
    whole = open_dataset(make_coco(tmp_path / "a", BOXES), "train").mask(0)
    bare = [without(item, "iscrowd", "area") for item in BOXES[::-1]]
    assert np.array_equal(open_dataset(make_coco(tmp_path / "b", bare), "train").mask(0), whole)
    assert whole[3, 6] == 17, "the smaller one is on top"


def test_categories_that_no_object_has_may_be_missing(tmp_path):
    categories = [{"id": 5, "name": "dog"}, {"id": 0, "name": "toothbrush"}]
    items = [BOXES[0] | {"category_id": 0}, BOXES[1] | {"category_id": 5}]
    reader = open_dataset(make_coco(tmp_path, items, categories=categories), "train")
    assert classes_of(reader.image_label(0)) == [17, 80]


def test_compressed_run_lengths(tmp_path):
    from pycocotools import mask as coding

    shape = np.asfortranarray(np.random.default_rng(0).integers(0, 2, (20, 30), dtype=np.uint8))
    text = coding.encode(shape)["counts"].decode()
    item = crowd(1, 1, 25, 20, 30) | {"segmentation": {"counts": text, "size": [20, 30]}}
    assert np.array_equal(open_dataset(make_coco(tmp_path, [item]), "train").mask(0), shape)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"category_id": 12}, "has category_id 12, which `categories` does not list. Correct it"),
        ({"category_id": "dog"}, "has the category_id 'dog', which is no whole number"),
        ({"image_id": 9}, "belongs to image_id 9, which `images` does not list. Add the image"),
        ({"image_id": None}, "has the image_id None, which is no whole number"),
        ({"id": 1}, "has the id of an annotation before it"),
        ({"iscrowd": 2}, "has iscrowd 2. It is 0 or 1"),
        ({"area": float("nan")}, "has area nan, which is no number of pixels"),
        ({"area": "12"}, "has area '12', which is no number of pixels"),
    ],
)
def test_entries_that_are_refused(tmp_path, changes, words):
    cfg = make_coco(tmp_path, [BOXES[0], BOXES[1] | changes])
    with pytest.raises(DataError, match=rf"annotation \d of .*{FILE} \(entry 1 of annotations\) {words}"):
        open_dataset(cfg, "train")


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ([], "its segmentation is empty"),
        (None, "it has no segmentation"),
        ("abc", "its segmentation is no list of polygons"),
        ([1, 1, 9, 1, 9, 9], "a polygon is a list x1, y1"),
        ([[1, 1, 9, 9]], "a polygon is a list x1, y1, x2, y2, ... of three points or more"),
        ([[1, 1, 9, 9, 5, 5, 3]], "a polygon is a list x1, y1"),
        ([[1, 1, 9, float("nan"), 5, 5]], "a polygon has y far outside the image, which is 30x20, or no number"),
        ([[1e12, 1, 9, 9, 5, 5]], "a polygon has x far outside the image"),
        ([[1, "1", 9, 9, 5, 5]], "or no number"),
        ({"size": [30, 20], "counts": [600]}, r"its run lengths are of size \[30, 20\], the image is \[20, 30\]"),
        ({"size": [20, 30], "counts": [5, 100]}, "its run lengths cover 105 pixels, the image has 600"),
        ({"size": [20, 30], "counts": [-5, 605]}, "are no list of numbers from 0 on"),
        ({"size": [20, 30], "counts": "1"}, "its run lengths cover 1 pixels"),
        ({"size": [20, 30], "counts": "oooo"}, "its run lengths are cut off"),
        ({"size": [20, 30]}, "are no list of numbers"),
    ],
)
def test_outlines_are_checked_before_anything_is_trained(tmp_path, segmentation, words):
    """pycocotools would end the process, never return, or read memory that is not its own."""
    cfg = make_coco(tmp_path, [BOXES[0], BOXES[1] | {"segmentation": segmentation, "bbox": [0, 0, 5, 5]}])
    with pytest.raises(DataError, match=rf"annotation 2 of .*{FILE} has no readable outline: .*{words}"):
        open_dataset(cfg, "train")
    labels = open_dataset(cfg.replace(label_source="annotations"), "train")
    assert classes_of(labels.image_label(0)) == [17, 80], "labels need no outline"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"categories": None}, "is no instances json .it has no list 'categories'"),
        ({"annotations": {}}, "is no instances json .it has no list 'annotations'"),
        ({"annotations": ["a"]}, "is no instances json .it has no list 'annotations' of objects"),
        ({"categories": [{"name": "person"}]}, "is not COCO: entry 0 of categories has the id None"),
        (
            {"images": [{"id": 1, "file_name": "a.jpg", "height": 20}]},
            "entry 0 of images.*height and width.*20 and None",
        ),
        ({"images": [{"id": 1, "height": 20, "width": 30}]}, "entry 0 of images.* needs an id .* and a file_name"),
        (
            {"images": [{"id": 1, "file_name": f"{f}/a.jpg", "height": 20, "width": 30} for f in "xy"]},
            "entry 1 of images.* has the id 1 of an image before it",
        ),
        (
            {"images": [{"id": n, "file_name": f"{n}/a.jpg", "height": 20, "width": 30} for n in (1, 2)]},
            "entry 1 of images.* has the file name '2/a.jpg' of an image before it",
        ),
    ],
)
def test_lists_that_are_refused(tmp_path, changes, words):
    cfg = make_coco(tmp_path, BOXES)
    path = tmp_path / "annotations" / FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DataError, match=words) as error:
        open_dataset(cfg, "train")
    assert FILE in str(error.value)


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_a_truncated_json(tmp_path, share, capsys):
    make_coco(tmp_path, BOXES)
    path = tmp_path / "annotations" / FILE
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert main(["data", "prepare", "coco", str(tmp_path), "--subset"]) == 2
    error = capsys.readouterr().err
    assert f"{FILE} is no instances json (" in error and "it may be cut off" in error and error.count("\n") == 1


def test_a_damaged_index_is_made_again(tmp_path):
    cfg = make_coco(tmp_path, BOXES)
    names = open_dataset(cfg, "train").names
    (index,) = tmp_path.glob("masks_from_json/*/index.json")
    for damaged in ("", "[]", '{"COCO": [99]}', '{"COCO": 3}'):
        index.write_text(damaged)
        assert open_dataset(cfg, "train").names == names


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros((10, 10), np.uint8), "is 10x10, its image .* is 30x20"),
        (np.full((20, 30), 90, np.uint8), r"holds \[90\]; allowed are 0..80"),
        (None, "cannot decode mask"),
    ],
)
def test_painted_masks_are_checked_by_prepare(tmp_path, mask, words):
    make_coco(tmp_path, BOXES)
    path = CocoMasks(tmp_path / "annotations" / FILE).mask_path("COCO_train2014_000000000001")
    path.write_bytes(path.read_bytes()[:-30])
    if mask is not None:
        Image.fromarray(mask).save(path)
    with pytest.raises(DataError, match=rf"{words}.*remove .*masks_from_json.*painted again"):
        prepare_coco(tmp_path, subset=True, progress=False)


def test_prepare_names_images_that_are_missing(tmp_path):
    make_coco(tmp_path, BOXES)
    (tmp_path / "train2014/COCO_train2014_000000000001.jpg").unlink()
    with pytest.raises(DataError, match=rf"1 image is not in .*, but in .*{FILE}: COCO_train2014_000000000001.jpg"):
        prepare_coco(tmp_path, subset=True, progress=False)


CASE = SAMPLES.parent / "cases/coco/no_iscrowd.json"


@pytest.mark.data
@pytest.mark.skipif(not CASE.is_file(), reason=f"no case: {CASE} is not there")
def test_the_case_without_iscrowd(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_val2014.json").write_bytes(CASE.read_bytes())
    (tmp_path / "val2014").mkdir()
    for info in json.loads(CASE.read_text())["images"]:
        source = SAMPLES / "coco_sample/coco2014/val2014" / info["file_name"]
        (tmp_path / "val2014" / source.name).write_bytes(source.read_bytes())
    masks = CocoMasks(Path(tmp_path, "annotations/instances_val2014.json"))
    ready = SAMPLES / "coco_sample/SegmentationClass/val2014"
    for name, numbers in masks.classes.items():
        with Image.open(masks.mask_path(name)) as painted, Image.open(ready / f"{name}.png") as other:
            first, second = np.array(painted), np.array(other)
        assert set(np.unique(first)) - {0} <= set(numbers)
        assert ((first > 0) == (second > 0)).mean() > 0.9
