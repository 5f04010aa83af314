"""Where the masks that a run learns from come from, which images have one, and what is refused before a run begins."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.folders import MEAN, STD, toy

from toco_lab.config import Config
from toco_lab.data.classes import DataError, class_names
from toco_lab.data.classes import save_mask as save_label
from toco_lab.data.loader import train_loader
from toco_lab.data.readers import open_dataset
from toco_lab.data.training_masks import TrainingMasks
from toco_lab.experiment import open_run
from toco_lab.method.batch import TENSORS


def supervised(**changes) -> Config:
    return toy(method="supervised", **changes)


def labels_of(cfg: Config, folder: Path, number: int = 2) -> Path:
    """A folder of labels as `pseudo_labels` leaves it: every pixel of every training image has one number."""
    reader = open_dataset(cfg, cfg.train_split)
    for index, name in enumerate(reader.names):
        save_label(folder / f"SegmentationClass/{name}.png", np.full(reader.image(index).shape[:2], number, np.uint8))
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    (folder / f"ImageSets/Segmentation/{cfg.train_split}.txt").write_text("".join(f"{n}\n" for n in reader.names))
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in class_names(cfg)))
    return folder


def test_true_masks_come_with_the_batch_they_belong_to() -> None:
    cfg = supervised(flip_probability=0.0)  # toy crops are whole scenes
    reader = open_dataset(cfg, "train")
    for batch in train_loader(cfg, MEAN, STD):
        assert batch.mask is not None and batch.mask.shape == (3, 96, 96) and "mask" in TENSORS
        for name, mask in zip(batch.names, batch.mask, strict=True):
            assert torch.equal(mask, torch.from_numpy(reader.mask(reader.names.index(name))).long())
        part = batch[1:].to("cpu")
        assert part.mask is not None and torch.equal(part.mask, batch.mask[1:])


def test_nothing_else_of_a_batch_changes_and_other_methods_read_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    with_masks = list(train_loader(supervised(), MEAN, STD))
    monkeypatch.setattr(TrainingMasks, "of", None)
    for one, other in zip(train_loader(toy(), MEAN, STD), with_masks, strict=True):
        assert one.mask is None and one[:1].to("cpu").mask is None and one.names == other.names
        for name in set(TENSORS) - {"mask", "flow", "holds"}:
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_pseudo_labels_are_read_from_their_folder(tmp_path: Path) -> None:
    cfg = supervised(mask_source=str(labels_of(supervised(), tmp_path / "refined", number=4)))
    assert all((batch.mask == 4).all() for batch in train_loader(cfg, MEAN, STD))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_voc_folder_gives_its_masks_in_any_process(voc: Config, workers: int) -> None:
    cfg = voc.replace(method="supervised", num_workers=workers, scale_range=(1.0, 1.0))
    batches = list(train_loader(cfg, MEAN, STD, start_step=1499))
    for batch in batches:
        assert batch.mask is not None
        for mask, box in zip(batch.mask, batch.valid_box.tolist(), strict=True):
            inside = mask[box[0] : box[1], box[2] : box[3]]
            assert inside.shape == (20, 30) and {3, 8} & set(inside.unique().tolist())
            assert (mask != 255).sum() == (inside != 255).sum()


def test_wrong_sources_are_refused_before_there_is_a_run(tmp_path: Path) -> None:
    cfg, folder = supervised(), labels_of(supervised(), tmp_path / "labels")
    asked = cfg.replace(mask_source=str(folder))

    def refused(cfg: Config, said: str) -> None:
        with pytest.raises(DataError, match=said):
            open_run(cfg, tmp_path / "runs")
        assert not (tmp_path / "runs").exists()

    refused(cfg.replace(mask_source=str(tmp_path)), "is no folder of pseudo labels: .*SegmentationClass is not there")
    refused(asked.replace(train_images=9), "2 of 9 images of 'train' have no label in .*the first is toy_train_000007")
    refused(asked.replace(toy_world="parts"), "has labels of 6 classes .striped disc, .*another data set|would mean")
    (folder / "ImageSets/Segmentation/train.txt").rename(folder / "ImageSets/Segmentation/val.txt")
    refused(asked, "has no list train.txt: its labels are of another split, or not finished")


def test_a_label_of_another_size_or_class_is_named(tmp_path: Path) -> None:
    cfg = supervised(mask_source=str(labels_of(supervised(), tmp_path / "labels", number=7)))
    masks = TrainingMasks.of(cfg, open_dataset(cfg, "train"))
    with pytest.raises(DataError, match=r"toy_train_000000.png holds \[7\]; allowed are 0..6 and 255"):
        masks[0]
    path = tmp_path / "labels/SegmentationClass/toy_train_000001.png"
    save_label(path, np.zeros((48, 96), np.uint8))
    with pytest.raises(DataError, match=r"toy_train_000001\.png is 96x48, its scene is 96x96"):
        masks[1]


def test_images_without_true_masks_are_refused(voc: Config) -> None:
    root = Path(voc.data_root)
    (root / "labels.csv").write_text("name,labels\none,bird\ntwo,cat\nthree,bird;cat\n")
    (root / "SegmentationClass/two.png").unlink()
    cfg = voc.replace(method="supervised", label_source=str(root / "labels.csv"))
    with pytest.raises(DataError, match=r"1 of 3 images of 'train' has no mask in .*the first is two"):
        TrainingMasks.of(cfg, open_dataset(cfg, "train"))


# --- masks of a few images --------------------------------------------------------------------------------------------

CONSISTENT = {"method": "supervised", "w_consistency": 1.0}


def drawn_for(cfg: Config) -> set[str]:
    reader = open_dataset(cfg, "train")
    images = TrainingMasks.of(cfg, reader).images
    assert images is not None
    return {reader.names[index] for index in images}


def test_masks_are_drawn_by_seed_and_more_hold_those_of_fewer() -> None:
    cfg = toy(train_images=40, masks_for=6)
    six, reader = drawn_for(cfg), open_dataset(cfg, "train")
    assert len(six) == 6 and six < drawn_for(cfg.replace(masks_for=12)) and six != drawn_for(cfg.replace(seed=1))
    assert six == drawn_for(cfg.replace(method="supervised", steps=9, batch_size=2))
    shown = sum(reader.image_label(reader.names.index(name)) for name in six)
    assert (shown > 0).all()  # all six classes


@pytest.mark.parametrize("changes", [{}, CONSISTENT], ids=["toco", "consistency"])
@pytest.mark.parametrize("batch_size", [4, 3])
def test_every_other_sample_has_a_mask_and_the_others_are_drawn_from_all(changes: dict, batch_size: int) -> None:
    cfg = toy(train_images=12, masks_for=3, steps=8, batch_size=batch_size, flip_probability=0.0, **changes)
    few, reader, batches = drawn_for(cfg), open_dataset(cfg, "train"), list(train_loader(cfg, MEAN, STD))
    names = [name for batch in batches for name in batch.names]
    with_mask, between = names[::2], names[1::2]
    assert all(set(with_mask[start : start + 3]) == few for start in range(0, len(with_mask), 3)[:-1])
    assert set(between[:12]) == set(reader.names) and len(set(names[1::2][:12])) == 12
    for batch in batches:
        assert batch.mask is not None and batch.has_mask == batch.known == [name in few for name in batch.names]
        for name, mask, there in zip(batch.names, batch.mask, batch.known, strict=True):
            truth = torch.from_numpy(reader.mask(reader.names.index(name))).long()
            assert torch.equal(mask, truth if there else torch.full_like(truth, 255))
        assert batch[1:].known == batch.known[1:]
    rest = list(train_loader(cfg, MEAN, STD, start_step=5))
    for one, other in zip(batches[5:], rest, strict=True):
        assert one.names == other.names and torch.equal(one.image, other.image) and torch.equal(one.mask, other.mask)


def test_masks_alone_see_no_other_image() -> None:
    cfg = supervised(train_images=12, masks_for=3)
    batches, few = list(train_loader(cfg, MEAN, STD)), drawn_for(cfg)
    assert all(set(batch.names) == few and batch.known == [True] * 3 for batch in batches)


@pytest.mark.parametrize("method", ["toco", "supervised"])
def test_masks_of_all_images_are_the_batches_of_a_run_without_this_option(method: str) -> None:
    plain, every = (toy(method=method, masks_for=number) for number in (0, 7))
    for one, other in zip(train_loader(plain, MEAN, STD), train_loader(every, MEAN, STD), strict=True):
        assert one.names == other.names and other.known == [True] * 3
        assert all(torch.equal(getattr(one, n), getattr(other, n)) for n in set(TENSORS) - {"mask", "flow", "holds"})
        assert other.mask is not None and (one.mask is None or torch.equal(one.mask, other.mask))


def test_only_the_view_that_is_taught_has_other_colours() -> None:
    plain = toy(train_images=12, masks_for=3)
    for one, other in zip(
        train_loader(plain, MEAN, STD), train_loader(plain.replace(**CONSISTENT), MEAN, STD), strict=True
    ):
        assert one.names == other.names and torch.equal(one.image, other.image)
        assert torch.equal(one.local_source, one.image) and not torch.equal(other.local_source, other.image)
    calm = plain.replace(**CONSISTENT, consistency_jitter=0.0)
    assert all(torch.equal(batch.local_source, batch.image) for batch in train_loader(calm, MEAN, STD))


def test_images_without_a_mask_are_never_among_the_few(voc: Config) -> None:
    root = Path(voc.data_root)
    (root / "labels.csv").write_text("name,labels\none,bird\ntwo,cat\nthree,bird;cat\n")
    (root / "SegmentationClass/two.png").unlink()
    cfg = voc.replace(label_source=str(root / "labels.csv"), masks_for=2)
    assert drawn_for(cfg) == {"one", "three"}
    (batch, *_) = train_loader(cfg.replace(batch_size=4), MEAN, STD, start_step=1500)
    assert batch.known == [name != "two" for name in batch.names] and batch.known[::2] == [True, True]
    for changes in ({}, {"method": "supervised"}):
        with pytest.raises(DataError, match=r"masks_for 3 .*2 of 3 images of 'train' have a mask. Set .* to 2 at most"):
            TrainingMasks.of(cfg.replace(masks_for=3, **changes), open_dataset(cfg, "train"))
