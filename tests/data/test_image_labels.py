"""Class names, palette and every kind of image-label file: written here, and those of real samples if there."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from helpers.folders import SAMPLES, classes_of, needs_samples, read_everything

from toco_lab.config import Config
from toco_lab.data import classes, image_labels, readers
from toco_lab.data.classes import DataError
from toco_lab.data.readers import open_dataset

# --- names and palette ------------------------------------------------------------------------------------------------


def test_palette_numbers():
    assert classes.PALETTE[[0, 1, 2, 8, 15, 20, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [64, 0, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192],
    ]  # fmt: skip


def test_class_names_follow_the_config(voc):
    assert len(classes.VOC_CLASSES) == 20 and classes.class_names(voc)[14] == "person"
    assert len(set(classes.COCO_CLASSES)) == 80 and classes.COCO_CLASSES[79] == "toothbrush"
    with pytest.raises(DataError, match="voc has 20 classes, the config says num_classes=7"):
        classes.class_names(voc.replace(num_classes=7))


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
    table = {"one": ["person", "bird"], "two": ["tvmonitor"], "three": []}
    if suffix == ".csv":
        path.write_text("name,labels\n" + "".join(f"{name},{'; '.join(names)}\n" for name, names in table.items()))
    elif suffix == ".json":
        path.write_text(json.dumps(table))
    else:
        onehot = {n: np.isin(classes.VOC_CLASSES, names).astype(np.float32) for n, names in table.items()}
        np.save(path, onehot, allow_pickle=True)
    (Path(voc.data_root) / "SegmentationClass/two.png").unlink()  # with a label file masks may be missing
    reader = open_dataset(voc.replace(label_source=str(path) if absolute else path.name), "train")
    assert [classes_of(reader.image_label(i)) for i in range(3)] == [[3, 15], [20], []]
    assert reader.image_label(0).dtype == np.float32 and reader.mask(1) is None


def test_label_errors(voc):
    root = Path(voc.data_root)

    def expect(message: str, source: str, content: str | None = None):
        if content is not None:
            (root / source).write_text(content)
        with pytest.raises(DataError, match=message):
            read_everything(voc.replace(label_source=source))

    write_xml(voc, "one", "persn")
    expect(r"unknown class 'persn' in .*one.xml. Correct the name there, did you mean 'person'\?", "xml")
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
    expect(r"refused to read .*b.npy: it holds an array \(20,\) of <f8", "b.npy")
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
    assert classes_of(image_labels.read_labels(tmp_path / "labels.npy", classes.VOC_CLASSES)["one"]) == [5]


# --- real samples -----------------------------------------------------------------------------------------------------


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
def test_voc_sample_labelme_xml(voc_sample, tmp_path):
    reader = readers.make_reader(voc_sample.replace(label_source="xml"), "trainval")
    reader.names = ["2011_000003", "2011_000025"]
    assert [classes_of(reader.image_label(i)) for i in range(2)] == [[15], [6, 7]]
