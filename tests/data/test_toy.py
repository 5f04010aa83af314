"""The toy world: deterministic, exact, disjoint streams; and the command that makes the pretrained weights still
works.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch

from toco_lab.config import Config
from toco_lab.data import toy, toy_backbone
from toco_lab.data.toy import MIN_VISIBLE, TOY_CLASSES, make_scene
from toco_lab.data.toy_backbone import Part, Pretrainer, Recipe, mixed
from toco_lab.smoothing.per_layer import smoothing_per_layer
from toco_lab.training.checkpoints import initial_model

SHIPPED = Path(__file__).parents[2] / "data" / "toy" / "vit_toy.safetensors"


def test_a_scene_depends_on_seed_and_index_alone():
    first = make_scene(0, 7)
    make_scene(3, 1)
    again = make_scene(0, 7)
    assert np.array_equal(first.image, again.image) and np.array_equal(first.mask, again.mask)
    for other in (make_scene(0, 8), make_scene(1, 7)):
        assert not np.array_equal(first.image, other.image)


def test_scenes_are_those_of_every_run_made_before():
    """To the bit, with NumPy's widest vector instructions and without: otherwise no older score could be repeated."""
    made = hashlib.sha256()
    for seed, index, options in (
        (0, 0, {}), (0, 1, {}), (0, 999, {}), (1, 0, {}), (1, 57, {}), (5, 6, {"size": 48}),
        (2, 3, {"size": 64, "single_object": True}), (3, 4, {"size": 64, "single_object": True}),
    ):  # fmt: skip
        scene = make_scene(seed, index, **options)
        made.update(scene.image.tobytes() + scene.mask.tobytes())
    assert made.hexdigest() == "78fe4a93b8968133e559f0dfbbf36550178bb498bd3722de6dbbcb64d52954d1"


@pytest.mark.parametrize("single", [False, True])
def test_scenes_hold_visible_objects_of_unlike_classes(single):
    counts = []
    for index in range(60):
        scene = make_scene(5, index, single_object=single)
        assert scene.image.shape == (96, 96, 3) and scene.image.dtype == np.uint8 and scene.mask.shape == (96, 96)
        labels, pixels = np.unique(scene.mask[scene.mask > 0], return_counts=True)
        assert len(labels) >= 1 and labels.max() <= len(TOY_CLASSES) and pixels.min() >= MIN_VISIBLE
        counts.append(len(labels))
    assert set(counts) == ({1} if single else {1, 2, 3})


def test_the_mask_is_where_the_object_was_painted(monkeypatch):
    """Painting every object in one flat colour, and no noise over it, shows exactly the mask."""
    flat = np.array([1.0, 0.0, 1.0], np.float32)
    monkeypatch.setattr(toy, "_paint", lambda rng, kind, u, v, radius: np.broadcast_to(flat, (len(u), 3)))
    monkeypatch.setattr(toy.toy_drawing, "background", lambda rng, size: np.zeros((size, size, 3), np.float32))
    for index in range(10):
        scene = make_scene(0, index)
        assert np.array_equal(scene.image[..., 0] > 128, scene.mask > 0)


def test_every_class_occurs():
    seen = set().union(*(set(np.unique(make_scene(0, i).mask)) for i in range(40)))
    assert seen == set(range(len(TOY_CLASSES) + 1))


def test_mixed_images_join_two_scenes_and_say_where():
    image = torch.arange(4.0)[:, None, None, None].expand(4, 3, 64, 64)  # image i is filled with i
    label = torch.arange(4)
    for seed in range(6):
        joined, parts = mixed(image, label, 1.0, np.random.default_rng(seed))
        assert sum(part.share for part in parts) == pytest.approx(1)
        assert (parts[0].region ^ parts[1].region).all()
        patches = joined[:, 0, ::8, ::8].flatten(1)
        for part in parts:
            assert (patches[:, part.region] == part.label[:, None]).all()
            assert part.region.float().mean().item() == pytest.approx(part.share)
    alone, parts = mixed(image, label, 0.0, np.random.default_rng(0))
    assert torch.equal(alone, image) and parts[0].region.all() and len(parts) == 1


def test_pretraining_reaches_every_parameter():
    recipe = Recipe(embed_dim=16, depth=3, num_heads=2)
    model = Pretrainer(recipe)
    image, label = toy_backbone.scenes(2, 0, 4, recipe.size)
    model.loss(image, [Part(1.0, label, torch.ones(64, dtype=torch.bool))]).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.slow
def test_the_command_that_makes_the_weights_still_works(tmp_path):
    out = tmp_path / "vit.safetensors"
    command = [sys.executable, "-m", "toco_lab.data.toy_backbone", "--out", str(out), "--steps", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "held-out accuracy" in done.stdout
    model = initial_model(Config.preset("toy").replace(weights=str(out)))
    with safetensors.safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["recipe"])["steps"] == 3
        assert torch.equal(model.encoder.blocks[0].attn.qkv.weight, file.get_tensor("blocks.0.attn.qkv.weight"))


def test_the_shipped_weights_are_of_the_preset_and_know_the_classes():
    cfg = Config.preset("toy")
    model = initial_model(cfg).eval()  # raises if a size or a name differs
    with safetensors.safe_open(SHIPPED, "pt") as file:
        about = file.metadata()
    assert float(about["held_out_accuracy"]) > 0.9
    assert vars(Recipe(**json.loads(about["recipe"]) | {"steps": 0})) == vars(Recipe(steps=0))  # fields may be younger
    images = toy_backbone.scenes(9, 0, 6, 96)[0]
    rows = smoothing_per_layer(model, list(images), name="shipped", sites=["after block"], metrics=["pairwise cosine"])
    curve = rows[rows["metric"] == "pairwise cosine"].groupby("layer")["value"].mean()
    assert curve.iloc[-1] > curve.iloc[0] + 0.05  # tokens become alike with depth: what the toy is for
