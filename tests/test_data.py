"""Readers, label files, loader and check: on tiny folders made here, on toy scenes, on real samples if there."""

import dataclasses
import itertools
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from toco_lab import data, labels, readers
from toco_lab.config import Config
from toco_lab.data import eval_samples, train_loader
from toco_lab.labels import DataError
from toco_lab.readers import check_dataset, open_dataset

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SAMPLES = Path(os.environ.get("TOCO_LAB_SAMPLES", Path(__file__).parents[2] / "shared" / "data"))
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no real sample images: {SAMPLES} is not there")
GOLDENS = Path(__file__).parents[2] / "shared" / "goldens"
NAMES = ("one", "two", "three")


@pytest.fixture
def voc(tmp_path) -> Config:
    """Three images of 30 x 20 pixels; `one` shows a bird (3), `two` a cat (8) and 255, `three` a bird and a cat."""
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation", "Annotations"):
        (root / folder).mkdir(parents=True)
    for name, classes in zip(NAMES, ([3], [8, 255], [3, 8]), strict=True):
        Image.new("RGB", (30, 20), (200, 100, 50)).save(root / f"JPEGImages/{name}.jpg")
        save_mask(root, name, classes)
    write_list(root, NAMES)
    return Config.preset("voc_vit_b").replace(
        data_root=str(root), train_split="train", val_split="train", crop_size=112, view2_size=32, steps=1501,
        batch_size=2, num_workers=0,
    )  # fmt: skip


def save_mask(root: Path, name: str, values, folder="SegmentationClass", mode="P", size=(20, 30)) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    for row, value in enumerate(values, start=1):
        mask[row, 5:9] = value
    file = Image.fromarray(mask)
    if mode == "P":
        file.putpalette(labels.PALETTE.tobytes())
    elif mode != "L":
        file = file.convert(mode)
    assert file.mode == mode
    file.save(root / folder / f"{name}.png")
    return mask


def write_list(root: Path, names, split="train") -> None:
    (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{name}\n" for name in names))


def read_everything(cfg: Config, split="train") -> None:
    reader = open_dataset(cfg, split)
    for index in range(len(reader)):
        reader.image(index), reader.mask(index), readers.training_label(reader, index)


def classes_of(label: np.ndarray) -> list[int]:
    return (np.flatnonzero(label) + 1).tolist()


# --- names, palette, masks --------------------------------------------------------------------------------------------


def test_palette_numbers():
    assert labels.PALETTE[[0, 1, 2, 8, 15, 20, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [64, 0, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192],
    ]  # fmt: skip


@pytest.mark.skipif(not GOLDENS.is_dir(), reason=f"no golden arrays: {GOLDENS} is not there")
def test_palette_is_the_golden_one():
    assert np.array_equal(labels.PALETTE, np.load(GOLDENS / "colormap.npz")["cmap"])


def test_class_names_follow_the_config(voc):
    assert len(labels.VOC_CLASSES) == 20 and labels.class_names(voc)[14] == "person"
    assert len(set(labels.COCO_CLASSES)) == 80 and labels.COCO_CLASSES[79] == "toothbrush"
    with pytest.raises(DataError, match="voc has 20 classes, the config says num_classes=7"):
        labels.class_names(voc.replace(num_classes=7))


def test_palette_and_grey_masks_give_the_same_labels(voc):
    root = Path(voc.data_root)
    palette = save_mask(root, "one", [3, 8, 255], mode="P")
    first = open_dataset(voc, "train").mask(0)
    save_mask(root, "one", [3, 8, 255], mode="L")
    second = open_dataset(voc, "train").mask(0)
    assert first.dtype == second.dtype == np.uint8
    assert np.array_equal(first, palette) and np.array_equal(second, palette)


def test_official_masks_come_first_but_sbd_for_train_aug(voc):
    root = Path(voc.data_root)
    save_mask(root, "one", [5], folder="SegmentationClassAug")
    save_mask(root, "four", [6], folder="SegmentationClassAug")
    Image.new("RGB", (30, 20)).save(root / "JPEGImages/four.jpg")
    for split in ("train", "train_aug"):
        write_list(root, ["one", "two", "four"], split)
    labels = {s: [classes_of(open_dataset(voc, s).image_label(i)) for i in range(3)] for s in ("train", "train_aug")}
    assert labels == {"train": [[3], [8], [6]], "train_aug": [[5], [8], [6]]}


@pytest.mark.parametrize("levels_up", [0, 1, 2])
def test_data_root_may_point_above_the_folder(voc, tmp_path, levels_up):
    (tmp_path / "VOCdevkit").mkdir()
    root = Path(voc.data_root).rename(tmp_path / "VOCdevkit/VOC2012")
    reader = open_dataset(voc.replace(data_root=str([root, *root.parents][levels_up])), "train")
    assert reader.names == list(NAMES) and reader.image(0).shape == (20, 30, 3)


def test_grey_jpeg_becomes_rgb_and_exif_orientation_is_ignored(voc):
    root = Path(voc.data_root)
    Image.new("L", (30, 20), 77).save(root / "JPEGImages/one.jpg")
    turned = Image.new("RGB", (30, 20))
    turned.getexif()[0x0112] = 6  # "turn by 90 degrees"
    turned.save(root / "JPEGImages/two.jpg", exif=turned.getexif())
    reader = open_dataset(voc, "train")
    assert reader.image(0).shape == (20, 30, 3) and (reader.image(0) == 77).all()
    assert reader.image(1).shape == (20, 30, 3) and reader.mask(1).shape == (20, 30)


def test_limits(voc):
    write_list(Path(voc.data_root), NAMES, "val")
    cfg = voc.replace(train_images=2, val_images=1, val_split="val")
    assert [len(open_dataset(cfg, split)) for split in ("train", "val")] == [2, 1]
    assert len(eval_samples(cfg, MEAN, STD)) == len(eval_samples(cfg, MEAN, STD, "train")) == 1


# --- errors: each names the file and the remedy -----------------------------------------------------------------------


def test_error_missing_folder(voc, tmp_path):
    with pytest.raises(DataError, match=r"nowhere/VOCdevkit/VOC2012/JPEGImages.*data/README.md"):
        open_dataset(voc.replace(data_root=str(tmp_path / "nowhere")), "train")


def test_error_missing_list(voc):
    with pytest.raises(DataError, match=r"no list .*vall.txt; lists in that folder: train\. .*correct the split"):
        open_dataset(voc, "vall")


def test_error_empty_list(voc):
    write_list(Path(voc.data_root), [])
    with pytest.raises(DataError, match=r"train.txt is empty.*one file name a line"):
        open_dataset(voc, "train")


def test_error_duplicates_and_missing_images_are_counted(voc):
    write_list(Path(voc.data_root), ["one", "one", "five.jpg", "six"])
    with pytest.raises(DataError, match=r"'one' stands twice in .*train.txt. Remove.*and 4 more; .*check") as error:
        open_dataset(voc, "train")
    assert "five" not in str(error.value)
    write_list(Path(voc.data_root), ["one", "five.jpg"])
    with pytest.raises(DataError, match=r"no image for 'five.jpg' of .*train.txt in JPEGImages.*without folder"):
        open_dataset(voc, "train")


def test_error_missing_mask(voc):
    (Path(voc.data_root) / "SegmentationClass/two.png").unlink()
    with pytest.raises(DataError, match=r"no mask for 'two' of .*SegmentationClass.*or give a label file"):
        open_dataset(voc, "train")


@pytest.mark.parametrize("share", [0, 0.5])
def test_error_damaged_jpeg(voc, share):
    path = Path(voc.data_root) / "JPEGImages/two.jpg"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"cannot decode .*two.jpg.*damaged"):
        read_everything(voc)


def test_error_damaged_mask(voc):
    path = Path(voc.data_root) / "SegmentationClass/two.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"cannot decode .*two.png.*damaged"):
        read_everything(voc)


def test_error_mask_of_another_size(voc):
    save_mask(Path(voc.data_root), "two", [3], size=(30, 20))
    with pytest.raises(DataError, match=r"two.png is 20x30, its image .*two.jpg is 30x20. Make the mask anew"):
        read_everything(voc)


def test_error_mask_values(voc):
    save_mask(Path(voc.data_root), "two", [20, 21, 90, 255])
    with pytest.raises(DataError, match=r"two.png holds \[21, 90\]; allowed are 0..20 and 255. Renumber"):
        read_everything(voc)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1"])
def test_error_mask_mode(voc, mode):
    save_mask(Path(voc.data_root), "two", [3], mode=mode)
    with pytest.raises(DataError, match=rf"two.png has mode {mode}, i.e. colours.*8-bit grey or palette PNG"):
        read_everything(voc)


def test_error_training_image_without_class(voc):
    save_mask(Path(voc.data_root), "two", [255])
    with pytest.raises(DataError, match=r"training image 'two' .*has no class. Take it off the list or label it"):
        read_everything(voc)
    assert eval_samples(voc, MEAN, STD)[1].image_label.sum() == 0  # evaluation does not mind


# --- image labels -----------------------------------------------------------------------------------------------------


def write_xml(cfg: Config, name: str, *objects: str) -> None:
    parts = "".join(f"<object><name>{o}</name><part><name>head</name></part></object>" for o in objects)
    (Path(cfg.data_root) / f"Annotations/{name}.xml").write_text(f"<annotation><name>x</name>{parts}</annotation>")


def test_labels_from_xml(voc):
    write_xml(voc, "one", "person", "bird", "person")
    assert classes_of(open_dataset(voc.replace(label_source="xml"), "train").image_label(0)) == [3, 15]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".npy"])
@pytest.mark.parametrize("absolute", [True, False])
def test_labels_from_a_file(voc, suffix, absolute):
    path = Path(voc.data_root) / f"labels{suffix}"
    labels = {"one": ["person", "bird"], "two": ["tvmonitor"], "three": []}
    if suffix == ".csv":
        path.write_text("name,labels\n" + "".join(f"{name},{'; '.join(names)}\n" for name, names in labels.items()))
    elif suffix == ".json":
        path.write_text(json.dumps(labels))
    else:
        onehot = {n: np.isin(labels.VOC_CLASSES, names).astype(np.float32) for n, names in labels.items()}
        np.save(path, onehot, allow_pickle=True)
    (Path(voc.data_root) / "SegmentationClass/two.png").unlink()  # with a label file masks may be missing
    reader = open_dataset(voc.replace(label_source=str(path) if absolute else path.name), "train")
    assert [classes_of(reader.image_label(i)) for i in range(3)] == [[3, 15], [20], []]
    assert reader.image_label(0).dtype == np.float32 and reader.mask(1) is None
    with pytest.raises(DataError, match=r"'three'.*has no class"):
        readers.training_label(reader, 2)


def test_label_errors(voc):
    root = Path(voc.data_root)

    def expect(message: str, source: str, content: str | None = None):
        if content is not None:
            (root / source).write_text(content)
        with pytest.raises(DataError, match=message):
            read_everything(voc.replace(label_source=source))

    write_xml(voc, "one", "persn")
    expect(r"unknown class 'persn' in .*one.xml. Correct the name there; did you mean 'person'\?", "xml")
    write_xml(voc, "one", "bird")
    expect(r"no annotation .*two.xml. Add it, or use", "xml")
    (root / "Annotations/two.xml").write_text("<annotation>")
    expect(r"cannot parse .*two.xml.*Copy the file again", "xml")
    unknown = r"unknown class 'zebra' in label file .*a.csv, image 'one'.*there are: aeroplane"
    expect(unknown, "a.csv", "name,labels\none,zebra\n")
    expect(r"a.csv has the wrong layout.*header `name,labels`", "a.csv", "image,classes\none,bird\n")
    expect(r"a.csv has the wrong layout", "a.csv", "name,labels\none\n")
    expect(r"no entry for 'two' in label file a.csv", "a.csv", "name,labels\none,bird\n")
    expect(r"a.json has the wrong layout", "a.json", "[1, 2]")
    expect(r"a.json has the wrong layout", "a.json", "{")
    expect(r"a.txt must end in .csv, .json or .npy", "a.txt", "")
    expect(r"label_source is neither `masks` nor `xml`, and there is no file mask or .*VOC2012/mask", "mask")
    np.save(root / "b.npy", {"one": np.ones(80)}, allow_pickle=True)
    expect(r"b.npy, image 'one': need 20 values of 0 or 1, got an array \(80,\)", "b.npy")
    np.save(root / "b.npy", np.ones(20))
    expect(r"refused to read .*b.npy: it holds an array \(20,\) of float64", "b.npy")
    expect(r"refused to read .*c.npy", "c.npy", "no numpy file")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("inside_array", [True, False])
def test_malicious_label_file_is_refused_without_running(voc, tmp_path, inside_array):
    trap, path = tmp_path / "trapped", Path(voc.data_root) / "labels.npy"
    value = np.array([Malicious(trap)], dtype=object) if inside_array else Malicious(trap)
    np.save(path, {"one": value}, allow_pickle=True)
    with pytest.raises(DataError, match=r"refused to read .*labels.npy: it asks for (posix|nt).mkdir"):
        open_dataset(voc.replace(label_source=str(path)), "train")
    assert not trap.exists()
    np.load(path, allow_pickle=True)  # what the usual way of reading would have done
    assert trap.exists()


@pytest.mark.parametrize("protocol", [3, 4])
def test_label_file_of_old_and_new_numpy(tmp_path, protocol):
    content = np.array({"one": np.eye(20, dtype=np.float32)[4]}, dtype=object)
    with (tmp_path / "labels.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(content))
        pickle.dump(content, file, protocol=protocol)
    assert classes_of(labels.read_labels(tmp_path / "labels.npy", labels.VOC_CLASSES)["one"]) == [5]


# --- training batches -------------------------------------------------------------------------------------------------


def equal(first: data.Batch, second: data.Batch) -> bool:
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def toy(**changes) -> Config:
    return Config.preset("smoke").replace(**({"steps": 6, "batch_size": 3, "train_images": 7} | changes))


def test_batch_shapes_and_slices():
    cfg = toy(view2_size=64)
    batch = next(iter(train_loader(cfg, MEAN, STD)))
    shapes = {name: tuple(value.shape) for name, value in vars(batch).items() if name != "names"}
    assert shapes == {"image": (3, 3, 96, 96), "view2": (3, 3, 64, 64), "local_source": (3, 3, 96, 96),
                      "image_label": (3, 6), "valid_box": (3, 4)}  # fmt: skip
    assert batch.valid_box.dtype == torch.int64 and batch.image.dtype == batch.image_label.dtype == torch.float32
    part = batch[1:3]
    assert part.names == batch.names[1:3] and torch.equal(part.view2, batch.view2[1:])
    assert equal(batch.to("cpu"), batch)


def test_resumed_loader_gives_the_same_batches():
    cfg = toy()
    whole, rest = list(train_loader(cfg, MEAN, STD)), list(train_loader(cfg, MEAN, STD, start_step=4))
    assert (len(whole), len(rest)) == (6, 2)
    assert all(equal(a, b) for a, b in zip(whole[4:], rest, strict=True))
    assert not torch.equal(whole[0].image, whole[1].image)


def test_each_epoch_is_another_permutation():
    cfg = toy(steps=7, batch_size=3)  # 21 positions, 3 epochs of 7 images that straddle the batches
    names = [name for batch in train_loader(cfg, MEAN, STD) for name in batch.names]
    epochs = [names[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(epoch) == [f"toy_train_{i:06d}" for i in range(7)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_every_position_has_views_of_its_own():
    views = torch.cat([batch.view2 for batch in train_loader(toy(train_images=1), MEAN, STD)])
    assert len({view.numpy().tobytes() for view in views}) == 18  # one scene, 18 random crops of it


def test_seed_changes_order_and_views_but_not_the_scenes():
    first, second = (next(iter(train_loader(toy(seed=seed), MEAN, STD))) for seed in (0, 1))
    assert first.names != second.names
    assert np.array_equal(open_dataset(toy(seed=0), "train").image(3), open_dataset(toy(seed=1), "train").image(3))


def test_loader_leaves_the_random_state_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    list(train_loader(toy(), MEAN, STD))
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_do_not_change_a_bit(voc):
    """Real augmentation at a size where torch splits sums over threads."""
    for index, name in enumerate(NAMES):
        noise = np.random.default_rng(index).integers(0, 256, (300, 400, 3), dtype=np.uint8)
        Image.fromarray(noise).save(Path(voc.data_root) / f"JPEGImages/{name}.jpg")
        save_mask(Path(voc.data_root), name, [3], size=(300, 400))
    cfg = voc.replace(crop_size=448, view2_size=224)
    batches = []
    for workers in (0, 2):
        loader = train_loader(cfg.replace(num_workers=workers), MEAN, STD, start_step=1499)
        batches.append(list(loader))
    assert len(batches[0]) == 2 and all(equal(a, b) for a, b in zip(*batches, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_reach_the_training_loop(voc, workers):
    save_mask(Path(voc.data_root), "two", [0])
    with pytest.raises(DataError, match="training image 'two'"):
        list(itertools.islice(train_loader(voc.replace(num_workers=workers), MEAN, STD), 2))


# --- toy --------------------------------------------------------------------------------------------------------------


def test_toy_streams():
    train, val = open_dataset(toy(), "train"), open_dataset(toy(val_images=4), "val")
    assert (len(train), len(val)) == (7, 4)
    images = {reader.image(i).tobytes() for reader in (train, val) for i in range(len(reader))}
    assert len(images) == 11, "train and val share a scene"
    present = np.unique(train.mask(2))
    assert classes_of(train.image_label(2)) == [c for c in present.tolist() if c not in (0, 255)]


def test_toy_endless_training_shows_no_scene_twice():
    names = [name for batch in train_loader(toy(train_images=0), MEAN, STD) for name in batch.names]
    assert len(set(names)) == 18


def test_toy_errors():
    with pytest.raises(DataError, match="toy has no split 'test'; there are: train, val"):
        open_dataset(toy(), "test")
    with pytest.raises(DataError, match="give val_images"):
        open_dataset(toy(val_images=0), "val")


# --- evaluation and check ---------------------------------------------------------------------------------------------


def test_eval_samples_are_whole_images(voc):
    samples = list(eval_samples(voc, MEAN, STD))
    assert [sample.name for sample in samples] == list(NAMES)
    sample = samples[1]
    assert sample.image.shape == (3, 20, 30) and sample.mask.dtype == torch.int64
    assert torch.allclose(sample.image[:, 0, 0] * torch.tensor(STD) + torch.tensor(MEAN),
                          torch.from_numpy(sample.raw[0, 0] / 255).float(), atol=1e-5)  # fmt: skip
    assert classes_of(sample.image_label.numpy()) == [8] and sample.mask.unique().tolist() == [0, 8, 255]


def test_eval_samples_without_masks(voc):
    for path in (Path(voc.data_root) / "SegmentationClass").iterdir():
        path.unlink()
    sample = eval_samples(voc, MEAN, STD)[0]
    assert sample.mask is None and sample.image_label is None


def test_check_collects_every_problem(voc):
    root = Path(voc.data_root)
    write_list(root, ["one", "two", "three", "three", "four"])
    save_mask(root, "one", [77])
    (root / "JPEGImages/two.jpg").write_bytes(b"")
    report = check_dataset(voc, "train", progress=False)
    assert len(report.problems) == len(set(report.problems))
    for part in ("'three' stands twice", "no image for 'four'", "no mask for 'four'", r"one.png holds [77]", "two.jpg"):
        assert sum(part in problem for problem in report.problems) == 1, (part, report.problems)
    assert (report.num_images, report.num_masks, report.sizes) == (5, 2, {(30, 20): 3})
    assert str(report).count("\n") >= len(report.problems) and "bird 2" in str(report)


def test_check_of_a_sound_set(voc):
    report = check_dataset(voc, "train", progress=False)
    assert report.problems == [] and report.num_masks == 3
    assert {name: count for name, count in report.class_images.items() if count} == {"bird": 2, "cat": 2}
    assert report.ignored == pytest.approx(4 / 1800)
    assert "0 problems" in str(report) and "width 30..30" in str(report)


def test_check_of_a_missing_folder_reports_it(voc, tmp_path):
    report = check_dataset(voc.replace(data_root=str(tmp_path / "nowhere")), "train", progress=False)
    assert len(report.problems) == 1 and "1 problems" in str(report)


# --- real samples -----------------------------------------------------------------------------------------------------


@pytest.fixture
def voc_sample() -> Config:
    return Config.preset("voc_vit_b").replace(data_root=str(SAMPLES / "voc_sample"), num_workers=0)


@needs_samples
@pytest.mark.data
@pytest.mark.slow
def test_all_of_voc_sample(voc_sample):
    """660 images: 506 in train_aug, 154 in val."""
    reports = {split: check_dataset(voc_sample, split, progress=False) for split in ("train_aug", "val")}
    for report in reports.values():
        assert report.problems == [], str(report)
    assert [report.num_masks for report in reports.values()] == [506, 154]
    total = {name: sum(r.class_images[name] for r in reports.values()) for name in labels.VOC_CLASSES}
    known = {"aeroplane": 0, "bicycle": 11, "bird": 12, "bottle": 39, "cat": 172, "person": 226, "tvmonitor": 33}
    assert total | known == total
    widths = [width for report in reports.values() for width, _ in report.sizes.elements()]
    assert (min(widths), max(widths), len(widths)) == (267, 500, 660)
    assert 0.02 < reports["val"].ignored < 0.1  # the border of the official masks


@needs_samples
@pytest.mark.data
def test_voc_sample_label_files_and_masks_agree(voc_sample):
    """The authors' own kind of label file, read without running it, against the official masks."""
    listed = open_dataset(voc_sample.replace(label_source=str(SAMPLES / "voc_sample/cls_labels_onehot.npy")), "val")
    masks = open_dataset(voc_sample, "val")
    assert len(listed) == 154
    for index in range(0, len(masks), 5):
        assert np.array_equal(masks.image_label(index), listed.image_label(index)), masks.names[index]


@needs_samples
@pytest.mark.data
def test_voc_sample_palette_and_grey_files_are_the_same_labels(voc_sample):
    official, aug = open_dataset(voc_sample, "train"), open_dataset(voc_sample, "train_aug")
    for name in official.names[:20]:
        first, second = official.names.index(name), aug.names.index(name)
        assert np.array_equal(official.mask(first), aug.mask(second)), name


@needs_samples
@pytest.mark.data
def test_voc_sample_labelme_xml(voc_sample, tmp_path):
    reader = readers.make_reader(voc_sample.replace(label_source="xml"), "trainval")
    reader.names = ["2011_000003", "2011_000025"]
    assert [classes_of(reader.image_label(i)) for i in range(2)] == [[15], [6, 7]]


@needs_samples
@pytest.mark.data
def test_coco_sample():
    cfg = Config.preset("coco_vit_b").replace(data_root=str(SAMPLES / "coco_sample"), num_workers=0)
    reports = [check_dataset(cfg, split, progress=False) for split in ("train", "val")]
    assert [report.num_images for report in reports] == [51, 97]
    assert [report.problems for report in reports] == [[], []]
    assert sum(any(r.class_images[name] for r in reports) for name in labels.COCO_CLASSES) == 74
    reader = open_dataset(cfg.replace(label_source="lists/cls_labels_onehot.npy"), "train")
    grey = reader.names.index("COCO_train2014_000000000086")
    assert reader.image(grey).shape[2] == 3
    agree = [
        np.array_equal(reader.image_label(i), labels.label_of_mask(reader.mask(i), 80)) for i in range(len(reader))
    ]
    assert all(agree)


@needs_samples
@pytest.mark.data
def test_voc_sample_trains(voc_sample):
    batch = next(iter(train_loader(voc_sample.replace(batch_size=2), MEAN, STD)))
    assert batch.image.shape == (2, 3, 448, 448) and batch.view2.shape == (2, 3, 224, 224)
    for image, (top, bottom, left, right) in zip(batch.image, batch.valid_box.tolist(), strict=True):
        assert image[:, top:bottom, left:right].std() > 0.1
        assert image.abs().sum() == pytest.approx(image[:, top:bottom, left:right].abs().sum().item(), rel=1e-5)
    assert dataclasses.is_dataclass(batch) and all(batch.image_label.sum(1) >= 1)
