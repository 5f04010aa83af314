"""Training batches and evaluation samples: on tiny folders made here, on toy scenes, on real samples if there."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.folders import MEAN, NAMES, STD, classes_of, needs_samples, save_mask, toy, write_list
from PIL import Image

from toco_lab.data import toy_tissue
from toco_lab.data.classes import DataError
from toco_lab.data.loader import eval_samples, train_loader
from toco_lab.data.readers import open_dataset
from toco_lab.method import batch

# --- training batches -------------------------------------------------------------------------------------------------


def equal(first: batch.Batch, second: batch.Batch) -> bool:
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_batch_shapes_and_slices():
    cfg = toy(view2_size=64)
    batch = next(iter(train_loader(cfg, MEAN, STD)))
    shapes = {name: tuple(value.shape) for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    assert shapes == {"image": (3, 3, 96, 96), "view2": (3, 3, 64, 64), "local_source": (3, 3, 96, 96),
                      "image_label": (3, 6), "valid_box": (3, 4)}  # fmt: skip
    assert batch.valid_box.dtype == torch.int64 and batch.image.dtype == batch.image_label.dtype == torch.float32
    part = batch[1:3]
    assert part.names == batch.names[1:3] and torch.equal(part.view2, batch.view2[1:])
    assert equal(batch.to("cpu"), batch)


def test_batches_know_the_largest_number_of_present_classes():
    batches = list(train_loader(toy(), MEAN, STD))
    bounds = [batch.max_present for batch in batches]
    assert bounds == [int(batch.image_label.sum(1).max()) for batch in batches] and len(set(bounds)) > 1
    assert all(type(bound) is int for bound in bounds)  # on the host
    batch = batches[0]
    assert batch.to("cpu").max_present == batch[:1].max_present == batch.max_present  # a bound for a part as well


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


def test_toy_endless_training_shows_no_scene_twice():
    names = [name for batch in train_loader(toy(train_images=0), MEAN, STD) for name in batch.names]
    assert len(set(names)) == 18


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
    save_mask(Path(voc.data_root), "two", [77])
    with pytest.raises(DataError, match=r"two.png holds \[77\]"):
        list(itertools.islice(train_loader(voc.replace(num_workers=workers), MEAN, STD), 2))


# --- evaluation -------------------------------------------------------------------------------------------------------


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


def test_limits(voc):
    write_list(Path(voc.data_root), NAMES, "val")
    cfg = voc.replace(train_images=2, val_images=1, val_split="val")
    assert [len(open_dataset(cfg, split)) for split in ("train", "val")] == [2, 1]
    assert len(eval_samples(cfg, MEAN, STD)) == len(eval_samples(cfg, MEAN, STD, "train")) == 1


# --- real samples -----------------------------------------------------------------------------------------------------


@needs_samples
@pytest.mark.data
def test_voc_sample_trains(voc_sample):
    batch = next(iter(train_loader(voc_sample.replace(batch_size=2), MEAN, STD)))
    assert batch.image.shape == (2, 3, 448, 448) and batch.view2.shape == (2, 3, 448, 448)
    for image, (top, bottom, left, right) in zip(batch.image, batch.valid_box.tolist(), strict=True):
        assert image[:, top:bottom, left:right].std() > 0.1
        assert image.abs().sum() == pytest.approx(image[:, top:bottom, left:right].abs().sum().item(), rel=1e-5)
    assert dataclasses.is_dataclass(batch) and all(batch.image_label.sum(1) >= 1)


# --- images without a class -------------------------------------------------------------------------------------------


def tissue(**changes):
    return toy(toy_world="tissue", num_classes=1, train_images=12, batch_size=3, steps=9, **changes)


def test_images_without_a_class_are_left_out_where_asked():
    cfg = tissue()
    reader = open_dataset(cfg, "train")
    shows = {name for index, name in enumerate(reader.names) if reader.image_label(index).any()}
    names = {on: [name for batch in train_loader(cfg.replace(train_on_empty=on), MEAN, STD) for name in batch.names]
             for on in (True, False)}  # fmt: skip
    assert 0 < len(shows) < 12 and set(names[True]) == set(reader.names) and set(names[False]) == shows
    epochs = [names[False][start : start + len(shows)] for start in range(0, 27 - len(shows), len(shows))]
    assert all(set(epoch) == shows for epoch in epochs)
    assert cfg.digest() != cfg.replace(train_on_empty=False).digest()


@pytest.mark.parametrize("changes", [{"turns": True}, {"turns": True, "train_on_empty": False}])
def test_a_resumed_loader_turns_as_it_would_have(changes):
    cfg = tissue(**changes)
    whole, rest = list(train_loader(cfg, MEAN, STD)), list(train_loader(cfg, MEAN, STD, start_step=5))
    assert all(equal(a, b) for a, b in zip(whole[5:], rest, strict=True))
    plain = list(train_loader(cfg.replace(turns=False), MEAN, STD))
    assert [a.names for a in plain] == [a.names for a in whole]
    assert any(not torch.equal(a.image, b.image) for a, b in zip(plain, whole, strict=True))


def test_a_split_without_any_class_cannot_train_without_its_empty_images(monkeypatch):
    monkeypatch.setattr(toy_tissue, "EMPTY", 1.0)
    with pytest.raises(DataError, match=r"no image of 'train' in .* has a class, and train_on_empty leaves out"):
        train_loader(tissue(train_on_empty=False, crop_size=80), MEAN, STD)
