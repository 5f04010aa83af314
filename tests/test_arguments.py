"""Functions that people call: a first argument of a wrong shape, type or range is an error that names it."""

import numpy as np
import pytest
import torch

import toco_lab as tl
from toco_lab.config import Config
from toco_lab.evaluation import confusion_matrix, iou_scores, native_cams, predict
from toco_lab.smoothing.formulas import token_similarity

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


def test_counts_that_are_none_and_numbers_that_only_seem_labels():
    for matrix in (-torch.ones(2, 2), torch.full((2, 2), torch.nan), torch.zeros(0, 0)):
        with pytest.raises(ValueError, match=r"^matrix must hold counts of at least one class, 0 or more each"):
            iou_scores(matrix)
    session, raw = tl.CamSession(tl.ToCo(CFG), CFG), np.zeros((96, 96, 3), np.uint8)
    for name, value in (("image_label", "cat"), ("mask", {"cat": 1})):
        with pytest.raises(ValueError, match=rf"^{name} must be an array or a tensor of numbers, got (str|dict)"):
            session.set_image(raw, **{name: value})
    session.set_image(raw)
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got 'high'"):
        session.label(threshold="high")


@pytest.mark.parametrize("call", [tl.backbones.normalise, tl.backbones.denormalise])
def test_colours_of_another_kind_are_named(call):
    image, mean, std = torch.zeros(3, 4, 4), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
    for wrong, words in (
        (image[:1], r"^image must be .* got shape \(1, 4, 4\)"),
        (image.permute(1, 2, 0), r"^image must be .* got shape \(4, 4, 3\)"),
        (np.zeros((3, 4, 4)), "^image must be .* got ndarray"),
    ):
        with pytest.raises(ValueError, match=words):
            call(wrong, mean, std)
    for wrong in ((123.7, 116.3, 103.5), (0.5,), (np.nan, 0.5, 0.5), (-0.1, 0.5, 0.5)):
        with pytest.raises(ValueError, match=r"^mean must be three numbers, 0 <= each <= 1"):
            call(image, wrong, std)
    for wrong in ((0, 0, 0), (58.4, 57.1, 57.4), (0.2, 0.2)):
        with pytest.raises(ValueError, match=r"^std must be three numbers, 0 < each <= 1"):
            call(image, mean, wrong)


def test_tokens_of_another_shape_are_named():
    for tokens, words in (
        (torch.rand(4, 4), r"got torch.float32 \(4, 4\)"),
        (torch.rand(1, 4, 4), r"got torch.float32 \(1, 4, 4\)"),
        (torch.ones(1, 4, 2, 2).int(), "got torch.int32"),
        (np.zeros((1, 4, 2, 2)), "got ndarray"),
        (None, "got NoneType"),
    ):
        for call in (
            token_similarity,
            lambda wrong: tl.smoothing.pair_cosine(wrong, torch.zeros(1, 2, 2)),
        ):
            with pytest.raises(ValueError, match=r"^tokens must be a tensor of floats, \(B, D, h, w\), " + words):
                call(tokens)
    with pytest.raises(ValueError, match=r"^tokens hold 16 numbers that are NaN or infinite"):
        token_similarity(torch.full((1, 4, 2, 2), torch.nan))


def test_what_is_no_model_and_no_config_is_named(model):
    for call, name in (
        (lambda: tl.multi_scale_cam("m", IMAGE), "model"),
        (lambda: native_cams("m", CFG, IMAGE, LABEL), "model"),
        (lambda: predict(model, "smoke", IMAGE, LABEL, ["cam"]), "cfg"),
        (lambda: tl.evaluation.evaluate_model("m", CFG), "model"),
        (lambda: tl.gallery_rows(model, "smoke"), "cfg"),
        (lambda: tl.layer_cam_quality("m", CFG), "model"),
        (lambda: tl.CamSession("m", CFG), "model"),
        (lambda: tl.CamSession(model, "smoke"), "cfg"),
        (lambda: tl.class_names("smoke"), "cfg"),
        (lambda: tl.run_sweep("grid.yaml"), "grid"),
    ):
        with pytest.raises(ValueError, match=rf"^{name} must be a (CamModel|Config|Grid), got str"):
            call()
    for runs in ("results/run", ["results/run"], None, 3, [(model, "smoke")], ("results/run",)):
        with pytest.raises(ValueError, match=r"^a run must be a RunDir, or a pair \(model, config\), got "):
            tl.CamExplorer(runs)


def test_images_and_scales_that_a_cam_cannot_be_made_of(model):
    for call in (lambda image: tl.multi_scale_cam(model, image), lambda image: native_cams(model, CFG, image, LABEL)):
        with pytest.raises(ValueError, match=r"^image holds 27648 numbers that are NaN or infinite"):
            call(IMAGE * torch.nan)
        with pytest.raises(ValueError, match=r"^image is of torch.float64, and the model is not: give image.float\(\)"):
            call(IMAGE.double())
    with pytest.raises(ValueError, match=r"^scale 0.001 of an image of 96 x 96 leaves no pixel"):
        tl.multi_scale_cam(model, IMAGE, (1.0, 0.001))
    for size in ((0, 3), (96,), (-1, 4)):
        with pytest.raises(ValueError, match=r"^size must be a height and a width of at least 1 pixel"):
            tl.multi_scale_cam(model, IMAGE, size=size)


def test_every_attribution_checks_its_class_and_its_image(model):
    for attribution in tl.explorers.attribution.ATTRIBUTIONS.values():
        for index in ("cat", 1.5, torch.tensor([1, 2])):
            with pytest.raises(ValueError, match=r"^class_index must be a whole number"):
                attribution(model, IMAGE, index)
        with pytest.raises(ValueError, match=r"^class_index 6 is not one of the model's 6 classes"):
            attribution(model, IMAGE, 6)
        for image in (IMAGE[0], IMAGE[:, :1]):
            with pytest.raises(ValueError, match=r"^image must be of shape \(B, 3, H, W\)"):
                attribution(model, image, 0)


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.warns(UserWarning, match=r"there is no folder .*nowhere, so it holds no runs: is the path right"):
        assert tl.list_runs(tmp_path / "nowhere").empty
    assert f"there is no folder {tmp_path / 'nowhere'}" in tl.RunBrowser(tmp_path / "nowhere").message.value
