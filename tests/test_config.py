"""Config: presets, strict overrides, JSON, digest, released behaviour."""

import dataclasses
import json

import pytest

from toco_lab.config import Config, config_differences
from toco_lab.fields import opt
from toco_lab.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json(name):
    cfg = Config.preset(name)
    assert Config.from_json(cfg.to_json()) == cfg
    assert Config.from_json(cfg.to_json()).digest() == cfg.digest()


def test_presets_carry_the_published_numbers():
    voc, coco = Config.preset("voc_vit_b"), Config.preset("coco_deit_b")
    assert (voc.steps, voc.batch_size, voc.high_threshold, voc.low_threshold, voc.background_threshold) == (
        20000, 4, 0.7, 0.25, 0.5)  # fmt: skip
    assert (coco.steps, coco.batch_size, coco.high_threshold, coco.low_threshold, coco.background_threshold) == (
        80000, 8, 0.65, 0.25, 0.45)  # fmt: skip
    assert (voc.seg_start_step, coco.seg_start_step, coco.contrast_start_step) == (2000, 8000, 12000)
    assert (voc.ctc_temperature, coco.ctc_temperature) == (0.5, 1.0)
    assert (voc.learning_rate, voc.warmup_steps, voc.w_ptc, voc.w_ctc, voc.w_seg, voc.w_reg) == (
        6e-5, 1500, 0.2, 0.5, 0.1, 0.05)  # fmt: skip


@pytest.mark.parametrize("changes, words", [
    ({"w_ptcc": 0.1}, ["w_ptcc", "did you mean 'w_ptc'"]),
    ({"w_ptc": "0.1"}, ["w_ptc", "float", "'0.1'"]),
    ({"steps": 1.5}, ["steps", "int", "1.5"]),
    ({"steps": True}, ["steps", "bool"]),
    ({"cam_scales": "(1.0, 0.5)"}, ["cam_scales", "str"]),
    ({"dataset": "pascal"}, ["dataset", "pascal"]),
    ({"low_threshold": 0.9}, ["0.9", "0.7"]),
    ({"cam_scales": [0.5, 1.0]}, ["cam_scales", "begin with 1.0"]),
    ({"blur_probability": [0.5]}, ["blur_probability needs 3 numbers"]),
    ({"num_local_crops": 0}, ["num_local_crops must be at least 1"]),
    ({"seed": -1}, ["seed must not be negative"]),
    ({"ctc_temperature": 0}, ["ctc_temperature must be positive"]),
    ({"flip_probability": 1.5}, ["flip_probability must lie in [0, 1]"]),
    ({"accumulate": 3}, ["accumulate 3", "batch_size 4"]),
    ({"steps": 0}, ["steps"]),
    ({"local_crop_size": 95}, ["even", "95"]),
    ({"high_threshold_end": [0.55, 0.6]}, ["high_threshold_end needs 1 number or 20 numbers", "got 2"]),
    ({"high_threshold_end": [0.2]}, ["high_threshold_end", "low_threshold 0.25", "(0.2,)"]),
    ({"high_threshold_end": [0.71]}, ["high_threshold_end", "high_threshold 0.7", "(0.71,)"]),
    ({"threshold_fall_start_step": 9}, ["threshold_fall_start_step 9", "no high_threshold_end"]),
    ({"noise_posterior": 1.5}, ["noise_posterior must lie in [0, 1]"]),
    ({"noise_start_step": -1}, ["noise_start_step must not be negative"]),
])  # fmt: skip
def test_bad_overrides_stop_with_both_values_in_the_message(changes, words):
    with pytest.raises(ValueError) as error:
        Config.preset("voc_vit_b").replace(**changes)
    for word in words:
        assert word in str(error.value)


def test_only_ints_and_lists_are_converted():
    cfg = Config.preset("smoke").replace(w_ptc=1, cam_scales=[1, 0.5])
    assert cfg.w_ptc == 1.0 and isinstance(cfg.w_ptc, float)
    assert cfg.cam_scales == (1.0, 0.5)


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'smoke'"):
        Config.preset("smok")


def test_digest_ignores_seed_and_bookkeeping_only():
    cfg = Config.preset("toy")
    assert cfg.digest() == cfg.replace(seed=5, num_workers=1, log_every=7, device="cpu").digest()
    for change in ({"w_ptc": 0.0}, {"steps": cfg.steps + 1}, {"flip_valid_box": False}):
        assert cfg.digest() != cfg.replace(**change).digest()
    assert cfg.replace(seed=3).run_name() == f"toy-{cfg.digest()}-s3"


def test_a_new_field_leaves_the_names_of_old_runs_alone():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Later(Config):
        novelty: float = opt(0.5, "a field of a later version")

    for name, fields in PRESETS.items():
        old, new = Config(**fields, preset_name=name), Later(**fields, preset_name=name)
        assert new.run_name() == old.run_name() != dataclasses.replace(new, novelty=0.7).run_name()


def test_the_second_view_counts_in_names_as_the_side_it_has():
    """224 was the default of `view2_size` once: such runs keep their names, and a view of another size has another."""
    crops = {"crop_candidates": "uncertain", "ctc_between": "negative"}  # as they were then
    cfg = Config.preset("voc_vit_b").replace(**crops)
    former = cfg.replace(view2_size=224)
    assert former.digest() == "85d189ed" != cfg.digest()  # the digest of the preset before
    assert cfg.digest() == cfg.replace(view2_size=448).digest()
    assert config_differences({"none": cfg, "spelt out": cfg.replace(view2_size=448)}) == {}  # one folder, one run
    assert config_differences({"none": cfg, "former": former}) == {"view2_size": {"none": None, "former": 224}}
    assert cfg.replace(crop_size=224).digest() == former.replace(crop_size=224).digest()
    toys = (Config.preset(name).replace(**crops) for name in ("toy", "smoke"))
    assert [toy.digest() for toy in toys] == ["6fd8d628", "c63acaf1"]
    assert Config.from_json(former.to_json()).digest() == former.digest()
    with pytest.raises(ValueError, match="view2_size 8 is less than patch_size 16"):
        cfg.replace(patch_size=16, view2_size=8)


def test_options_of_dupl_count_in_the_digest_only_where_they_are_on():
    cfg = Config.preset("toy")
    assert cfg.digest() == cfg.replace(high_threshold_end=None, noise_start_step=None, noise_min_pixels=1000).digest()
    options = [{"high_threshold_end": [0.55]}, {"high_threshold_end": [0.5]}, {"noise_start_step": 0}]
    assert len({cfg.replace(**changes).digest() for changes in ({}, *options)}) == 4


def test_released_switches_every_quirk_on():
    sound = Config.preset("voc_vit_b")
    assert sound.crop_candidates == sound.released().crop_candidates == "not_foreground"  # right, and the default
    sound = sound.replace(crop_candidates="uncertain", ctc_between="negative")
    differing = config_differences({"sound": sound, "released": sound.released()})
    quirks = {f.name for f in dataclasses.fields(Config) if f.metadata["quirk"] is not None}
    assert set(differing) | {"ctc_between"} == quirks
    assert sound.released().released() == sound.released()
    assert {"flip_views_independently", "flip_valid_box", "ptc_box_units", "crops_in_valid_box"} <= quirks
    assert sound.released().late_segmentation  # `n_iter <= 2000` has weight 0 for 2,001 steps


@pytest.mark.parametrize("name, old, released", [
    ("toy", "6fd8d628", "45d15c85"), ("voc_vit_b", "85d189ed", "0e8d36f3"), ("coco_deit_b", "95e52d52", "12d5ad40"),
])  # fmt: skip
def test_runs_from_before_crops_of_both_kinds_keep_their_names_and_their_crops(name, old, released):
    cfg = Config.preset(name).replace(view2_size=64 if name == "toy" else 224)
    assert cfg.released().replace(colours_on="image").digest() == released  # with the views of then: what it did
    before = cfg.replace(crop_candidates="uncertain", ctc_between="negative")
    assert before.digest() == old != cfg.digest()
    written = json.loads(before.to_json())
    del written["ctc_between"], written["crop_max_negative"]  # as an older version wrote it
    assert Config.from_json(json.dumps(written)) == before
    assert Config.from_json(cfg.to_json()) == cfg


@pytest.mark.parametrize("changes, words", [
    ({"crop_max_negative": 0.3}, ["crop_max_negative 0.3", "crop_min_content 0.2", "ctc_between to 'negative'"]),
    ({"crop_min_content": 0.01}, ["crop_max_negative 0.05", "crop_min_content 0.01"]),
    ({"crop_candidates": "uncertain"}, ["crop_candidates 'uncertain'", "no negatives", "ctc_between to 'negative'"]),
])  # fmt: skip
def test_crop_settings_that_contradict_each_other_are_refused_unless_flags_come_from_content_alone(changes, words):
    cfg = Config.preset("voc_vit_b")
    with pytest.raises(ValueError) as error:
        cfg.replace(**changes)
    for word in words:
        assert word in str(error.value)
    assert cfg.replace(ctc_between="negative", **changes).ctc_between == "negative"


def test_every_field_is_explained():
    frame = Config.preset("toy").to_frame()
    assert (frame["meaning"].str.len() > 10).all()
    assert frame.loc["w_ptc", "default"] == 0.2
