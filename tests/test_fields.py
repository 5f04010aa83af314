"""The range of every config field, walked from its declaration: a value that does not fit is named with its field."""

import dataclasses
import json
import math
from typing import Any, Literal, get_args, get_origin

import pytest
from helpers.config_values import FIELDS, kinds, outside, wrong_types
from hypothesis import given, settings
from hypothesis import strategies as st

from toco_lab.config import Config
from toco_lab.fields import Limits, check_fields, opt, shown
from toco_lab.presets import PRESETS
from toco_lab.relations import never_reached


def number_of_values() -> int:
    return sum(len(wrong_types(name)) + len(outside(name)) for name in FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_a_value_that_does_not_fit_is_named_with_its_field(name):
    base = Config.preset("toy")
    for value in [*wrong_types(name), *outside(name)]:
        with pytest.raises(ValueError) as error:
            base.replace(**{name: value})
        assert name in str(error.value) and type(error.value) is ValueError
        assert "got" in str(error.value) and len(str(error.value)) < 600
        if not isinstance(value, list | tuple) and type(value) is not int:  # a list is shown as the tuple it became
            assert shown(value) in str(error.value)


def test_the_walk_is_a_long_one():
    assert number_of_values() > 3000
    free = {name for name in FIELDS if not outside(name)}
    closed = {name for name in FIELDS if kinds(name)[2] is bool or get_origin(kinds(name)[2]) is Literal}
    assert free - closed == {"aux_layer"}  # an index, whose range depends on depth


@pytest.mark.parametrize("name", FIELDS)
def test_numbers_and_texts_have_a_range_where_they_are_declared(name):
    _, _, kind = kinds(name)
    limits: Limits = FIELDS[name].metadata["limits"]
    if kind is float or (kind is int and name not in ("output_stride", "aux_layer")):
        assert limits.at_least is not None or limits.above is not None
    assert not limits.fault(FIELDS[name].default)
    for preset in PRESETS:
        assert not limits.fault(getattr(Config.preset(preset).released(), name))


@pytest.mark.parametrize("changes, message", [
    ({"blur_probability": [0.5, 1.5, 0]},
     "config: blur_probability must lie in [0, 1], each of its items, got (0.5, 1.5, 0.0)"),
    ({"flip_probability": 1.5}, "config: flip_probability must lie in [0, 1], got 1.5"),
    ({"w_ptc": -0.1}, "config: w_ptc must not be negative, got -0.1"),
    ({"w_ptc": math.nan}, "config: w_ptc must be a finite number, got nan"),
    ({"learning_rate": 0}, "config: learning_rate must be positive, got 0.0"),
    ({"betas": [0.9, 1]}, "config: betas must lie in [0, 1), each of its items, got (0.9, 1.0)"),
    ({"scale_range": [2, 0.5]}, "config: scale_range must increase: the smaller number comes first, got (2.0, 0.5)"),
    ({"view2_scale": [0, 1]}, "config: view2_scale must lie in (0, 1], each of its items, got (0.0, 1.0)"),
    ({"num_classes": 300}, "config: num_classes must lie in [0, 254] (255 marks pixels that do not count), got 300"),
    ({"eval_seg_scales": [1e9]},
     "config: eval_seg_scales must be at most 16 (more would only exhaust memory or time), each of its items, got"),
    ({"eval_seg_scales": [1.0] * 101}, "config: eval_seg_scales may name 100 numbers at most, got"),
    ({"crop_size": 10**9}, "config: crop_size must be at most 16,384 (more would only exhaust memory or time), got 10"),
    ({"batch_size": 10**12}, "config: batch_size must be at most 1,000,000 (more would only exhaust memory or time)"),
    ({"num_local_crops": 10**9}, "config: num_local_crops must be at most 1,024 (more would"),
    ({"num_workers": 10**6}, "config: num_workers must lie in [0, 1024], got 1000000"),
    ({"val_split": " "}, "config: val_split must not be empty, got ' '"),
    ({"preset_name": "../x"},
     "config: preset_name must be a short name that a folder can have, without / and \\, got '../x'"),
    ({"seed": 2**64}, "config field 'seed' must be below 2**63, got 18446744073709551616"),
    ({"backbone": ["a"]}, "config field 'backbone' must be str, got ['a'] (list)"),
    ({"backbone_args": '{"drop_rate": NaN}'}, "config: backbone_args must be a JSON object"),
    ({"backbone_args": '{"drop_rate": 1e999}'}, "config: backbone_args must be a JSON object"),
    # two fields
    ({"steps": 20}, "config: warmup_steps 1500 must be below steps 20: a run this short needs fewer warm-up steps"),
    ({"low_threshold": 0.7}, "config: low_threshold must be below high_threshold, got 0.7 and 0.7"),
    ({"jitter": [0.4, 0.4, 0.2, 0.6]}, "config: jitter may shift the hue, its last number, by 0.5 at most"),
    ({"num_classes": 0}, "config: num_classes must be at least 1 for dataset 'voc', got 0"),
    ({"classes": ["ant", "bee"]}, "config: num_classes 20 is not the number of classes, which names 2"),
    ({"patch_size": 16, "crop_size": 450}, "config: crop_size 450 is not a multiple of patch_size 16"),
    ({"patch_size": 16, "image_size": 225}, "config: image_size 225 is not a multiple of patch_size 16"),
    ({"patch_size": 16, "view2_size": 15}, "config: view2_size 15 is less than patch_size 16"),
    ({"embed_dim": 64, "num_heads": 3}, "config: num_heads 3 must divide embed_dim 64"),
    ({"depth": 2}, "config: aux_layer -3 is not one of the 2 blocks that depth asks for"),
])  # fmt: skip
def test_the_message_says_field_value_and_range(changes, message):
    with pytest.raises(ValueError) as error:
        Config.preset("voc_vit_b").replace(**changes)
    assert message in str(error.value)


@pytest.mark.parametrize("text, words", [
    ("", "cannot be read as JSON"),
    ('{"steps": ', "cannot be read as JSON"),
    ("[" * 100_000, "cannot be read as JSON"),
    ("[1, 2]", "must be a JSON object of fields and values, got [1, 2]"),
    ("null", "must be a JSON object of fields and values, got None"),
    ('{"self": 1}', "unknown config field 'self'"),
    ('{"w_ptc": NaN}', "w_ptc must be a finite number, got nan"),
    ('{"w_ptc": 1e999}', "w_ptc must be a finite number, got inf"),
])  # fmt: skip
def test_text_that_is_no_config_says_what_was_expected(text, words):
    with pytest.raises(ValueError) as error:
        Config.from_json(text)
    assert words in str(error.value)


def test_long_values_are_cut_in_messages():
    assert shown(list(range(10_000))).endswith("19, ...]") and len(shown("x" * 10**6)) <= 200
    laughs: Any = "ha"
    for _ in range(30):  # 20**30 items to print, had it no limit
        laughs = [laughs] * 20
    assert len(shown(laughs)) <= 200
    assert shown({"a": 10**5000}) == "{'a': a whole number of 16610 bits}"
    assert shown(10**5000) == "a whole number of 16610 bits"


def test_losses_that_never_join_are_said():
    smoke = Config.preset("smoke")
    assert all(not never_reached(Config.preset(preset).released()) for preset in PRESETS)
    found = never_reached(smoke.replace(seg_start_step=4, contrast_start_step=9))
    assert [sentence.partition(":")[2].partition(".")[0] for sentence in found] == [
        " contrast_start_step 9 is not below steps 4", " seg_start_step 4 is not below steps 4",
    ]  # fmt: skip
    assert len(never_reached(smoke.replace(seg_start_step=3, late_segmentation=True))) == 1
    assert not never_reached(smoke.replace(seg_start_step=4, w_seg=0.0, w_reg=0.0))
    (late,) = never_reached(smoke.replace(ctc_start_step=4))
    assert late.startswith("the terms of class token contrast never join: ctc_start_step 4 is not below steps 4")


def test_options_that_never_act_are_said():
    cfg = Config.preset("smoke").replace(steps=4, high_threshold_end=[0.55], noise_start_step=3)
    assert not never_reached(cfg)
    assert never_reached(cfg.replace(threshold_fall_start_step=4, noise_start_step=5)) == [
        f"{what} is not below steps 4. Lower it for a run this short"
        for what in (
            "the upper threshold never falls: threshold_fall_start_step 4",
            "the noise filter never acts: noise_start_step 5",
        )
    ]
    assert "seg_start_step 4" in never_reached(cfg.replace(seg_start_step=4))[1]


def test_one_sided_ranges_in_words():
    @dataclasses.dataclass(frozen=True)
    class Small:
        most: float = opt(1.0, "at most", at_most=2)
        less: float = opt(1.0, "below", below=2)
        more: float = opt(2.0, "above", above=1)

        def __post_init__(self):
            check_fields(self)

    for changes, words in [
        ({"most": 2.5}, "most must be at most 2"),
        ({"less": 2}, "less must be below 2"),
        ({"more": 1}, "more must be above 1"),
    ]:
        with pytest.raises(ValueError, match=words):
            Small(**changes)


# --- any JSON value for any field ------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@st.composite
def field_and_value(draw: st.DrawFn) -> tuple[str, Any]:
    """A field and a JSON value, in half of the cases one of the field's own type."""
    name = draw(st.sampled_from(list(FIELDS)))
    _, listed, kind = kinds(name)
    own = {
        bool: st.booleans(), int: st.integers(-3, 600), float: st.floats(-1, 2) | st.floats(),
        str: st.text(max_size=12),
    }.get(kind, st.sampled_from(get_args(kind) or ("",)))  # fmt: skip
    own = st.lists(own, max_size=5) if listed else own
    return name, draw(own | JSON)


@settings(max_examples=600, deadline=None, database=None)
@given(field_and_value(), st.sampled_from(["toy", "voc_vit_b", "folder"]))
def test_any_json_value_makes_a_config_that_survives_json_or_an_error_that_names_the_field(pair, preset):
    name, value = pair
    base = Config.preset(preset)
    try:
        cfg = base.replace(**{name: value})
    except ValueError as error:
        assert name in str(error)
        text = json.dumps(json.loads(base.to_json()) | {name: value})
        with pytest.raises(ValueError, match=name):
            Config.from_json(text)
        return
    assert Config.from_json(cfg.to_json()) == cfg
    assert len(cfg.digest()) == 8 and "/" not in cfg.run_name()
