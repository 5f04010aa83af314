"""Functions that people call: a first argument of a wrong shape, type or range is an error that names it."""

import numpy as np
import pytest
import torch

import toco_lab as tl
from toco_lab.config import Config
from toco_lab.evaluation import confusion_matrix, iou_scores, native_cams, predict

CFG = Config.preset("smoke")
IMAGE, LABEL = torch.zeros(1, 3, 96, 96), torch.eye(6)[:1]
WRONG_IMAGES = {
    "None": None,
    "a path": "photo.jpg",
    "an array": np.zeros((96, 96, 3), np.uint8),
    "2 axes": IMAGE[0, 0],
    "3 axes": IMAGE[0],
    "grey": IMAGE[:, :1],
    "channels last": IMAGE.permute(0, 2, 3, 1),
    "no image": IMAGE[:0],
    "integers": IMAGE.byte(),
}


@pytest.fixture(scope="module")
def model() -> tl.ToCo:
    return tl.ToCo(CFG).eval()


@pytest.mark.parametrize("case", WRONG_IMAGES)
def test_what_is_no_batch_of_images_is_named(model, case):
    image = WRONG_IMAGES[case]
    for call in (
        lambda: model(image),
        lambda: tl.multi_scale_cam(model, image),
        lambda: native_cams(model, CFG, image, LABEL),
        lambda: predict(model, CFG, image, LABEL, ["seg"]),
    ):
        with pytest.raises(ValueError, match=r"^image (must be|is of torch.uint8)"):
            call()


@pytest.mark.parametrize(
    "label",
    [None, [1, 0], LABEL[0], torch.zeros(1, 7), torch.zeros(2, 6), 2 * LABEL, LABEL / 2, LABEL * torch.nan, -LABEL],
)
def test_what_is_no_image_label_is_named(model, label):
    with pytest.raises(ValueError, match=r"^image_label must"):
        predict(model, CFG, IMAGE, label, ["cam"])


def test_numbers_targets_and_scales_of_a_prediction(model):
    with pytest.raises(ValueError, match=r"image holds 27648 numbers that are NaN or infinite"):
        predict(model, CFG, IMAGE * torch.nan, LABEL, ["seg"])
    with pytest.raises(ValueError, match="unknown target 'nix'; there are: cam, "):
        predict(model, CFG, IMAGE, LABEL, ["nix"])
    assert set(predict(model, CFG, IMAGE, LABEL, "seg")) == {"seg"}
    for scales in ((), (0,), (-1.0,), (float("nan"),), (float("inf"),)):
        with pytest.raises(ValueError, match="scales must be positive numbers"):
            tl.multi_scale_cam(model, IMAGE, scales)


@pytest.mark.parametrize(
    ("prediction", "truth", "count", "words"),
    [
        ([1], torch.ones(1).int(), 3, "prediction must be a tensor of whole numbers, got list"),
        (torch.ones(4), torch.ones(4).int(), 3, "prediction must be .* got torch.float32"),
        (torch.ones(4).int(), np.ones(4), 3, "truth must be .* got ndarray"),
        (torch.ones(4).int(), torch.ones(1, 4).int(), 3, r"prediction \(4,\) does not fit truth \(1, 4\)"),
        (torch.ones(4).int(), torch.ones(4).int(), 0, "num_classes must be at least 1, got 0"),
    ],
)
def test_label_maps_that_cannot_be_counted(prediction, truth, count, words):
    with pytest.raises(ValueError, match=words):
        confusion_matrix(prediction, truth, count)


def test_what_is_no_confusion_matrix():
    for matrix in (np.ones((2, 2)), torch.ones(3), torch.ones(2, 3), torch.ones(2, 2, 2)):
        with pytest.raises(ValueError, match=r"matrix must be a tensor of shape \(K, K\)"):
            iou_scores(matrix)
    with pytest.raises(ValueError, match="over must be 'present' or 'all', got 'x'"):
        iou_scores(torch.eye(2), over="x")


def test_uploads_that_are_neither_bytes_nor_a_path():
    for source in (None, 3, np.zeros((4, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"^source must be the bytes of an image file or its path"):
            tl.decode_image(source)
    for side in (0, -3):
        with pytest.raises(ValueError, match="longest_side must be at least 1 pixel"):
            tl.decode_image(b"", longest_side=side)


def test_what_a_session_refuses(model, rng):
    session, raw = tl.CamSession(model, CFG), rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
    for changes, words in (
        ({"image_label": [0, 2, 0, 0, 0, 0]}, "image_label must hold 0 and 1"),
        ({"image_label": np.full(6, np.nan)}, "image_label must hold 0 and 1"),
        ({"mask": np.full((96, 96), 99)}, "mask holds 99; allowed are whole numbers 0..6 and 255"),
        ({"mask": np.full((96, 96), 0.5)}, "mask holds 0.5"),
        ({"mask": np.full((96, 96), -1)}, "mask holds -1"),
    ):
        with pytest.raises(ValueError, match=words):
            session.set_image(raw, **changes)
    session.set_image(raw, image_label=[1, 0, 0, 0, 0, 0], mask=np.ones((96, 96), np.uint8))
    for number in (99, -1, 1.5, "cat"):
        with pytest.raises(ValueError, match="is not one of the model's 6 classes"):
            session.score(class_index=number)
    for threshold in (9, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\]"):
            session.label(threshold=threshold)
    for scales in ((), (0,), (-1,), "1"):
        with pytest.raises(ValueError, match="scales must be positive numbers"):
            session.label(scales=scales)
    for label, words in ((torch.zeros(3, 3).int(), "does not fit truth"), (torch.zeros(96, 96), "whole numbers")):
        with pytest.raises(ValueError, match=words):
            session.iou(label)


@pytest.mark.parametrize("call", [tl.train, tl.make, tl.evaluate_run, tl.load_run_model, tl.smoothing_of_run,
                                  tl.maps_of_run, tl.write_pseudo_labels])  # fmt: skip
@pytest.mark.parametrize("run", ["results/run", None, CFG])
def test_what_is_no_run_is_named(call, run):
    with pytest.raises(ValueError, match=r"^run must be a RunDir, got \w+ .*open one with RunDir\(folder\)"):
        call(run)


@pytest.mark.parametrize(
    "call", [tl.ToCo, tl.initial_model, tl.complete_config, tl.open_run, lambda cfg: tl.open_dataset(cfg, "train")]
)
@pytest.mark.parametrize("cfg", ["smoke", None, {"steps": 3}])
def test_what_is_no_config_is_named(call, cfg):
    with pytest.raises(ValueError, match=r"^cfg must be a Config, got \w+ .*make one with Config.preset\(name\)"):
        call(cfg)


def test_scenes_token_maps_and_classes_of_attributions(model):
    for wrong, words in (
        ((-1, 0), "seed must be"),
        ((0, "a"), "index must be"),
        ((0, 0, 5), "size must be .* 48, got 5"),
    ):
        with pytest.raises(ValueError, match=words):
            tl.make_scene(*wrong[:2], **({"size": wrong[2]} if len(wrong) > 2 else {}))
    with pytest.raises(ValueError, match="an item of maps must be a TokenMaps, got str 'a'"):
        tl.TokenExplorer(["a"])
    for index in ("cat", 1.5, torch.tensor([1, 2]), torch.tensor(0.5)):
        with pytest.raises(ValueError, match=r"^class_index must be a whole number"):
            tl.explorers.attribution.grad_cam(model, IMAGE, index)
    for image, words in ((np.zeros((3, 64, 64)), "ndarray"), (torch.zeros(64, 64), r"shape \(64, 64\)")):
        with pytest.raises(ValueError, match=rf"image '0' must be a tensor of floats, .* got {words}"):
            tl.smoothing_per_layer(model, [image], name="mine", weights="random", progress=False)
