"""One image: the same maps and masks as the evaluation, whatever the image is given as."""

import io
import json
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from toco_lab.data.classes import DataError, class_names
from toco_lab.data.images import read_rgb
from toco_lab.data.toy import make_scene
from toco_lab.evaluation.prediction import native_cams, predict
from toco_lab.method.cam import raw_cams, resize
from toco_lab.prediction.predictor import Predictor, read_image
from toco_lab.prediction.recipe import why_no_decoder
from toco_lab.prediction.result import Prediction


def told(model, sample) -> list[str]:
    return [name for name, there in zip(model.class_names, sample.image_label, strict=True) if there]


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "crf", "target"),
    [
        ("cam", False, "cam"), ("cam_aux", False, "cam_aux"), ("cam_refined", False, "cam_refined"),
        ("seg", False, "seg"), ("seg", True, "seg_crf"),
    ],
)  # fmt: skip
def test_with_the_true_labels_told_the_mask_is_the_one_that_evaluation_scores(model, samples, mask, crf, target):
    for sample in samples[:2]:
        wanted = predict(model.model, model.cfg, sample.image[None], sample.image_label[None], [target])[target][0]
        found = model.predict(sample.raw, classes=told(model, sample), mask=mask, crf=crf)
        assert found.mask.dtype == np.uint8 and np.array_equal(found.mask, wanted.numpy())
        assert found.present == tuple(told(model, sample))
        if target != "seg" and target != "seg_crf":
            assert set(found.in_mask) <= set(found.present)


def test_the_mask_is_the_argmax_of_the_cams_above_the_threshold(model, samples):
    sample = samples[0]
    found = model.predict(sample.raw, classes=told(model, sample), mask="cam", background_threshold=0.4)
    numbers = np.array([model.class_names.index(name) + 1 for name in found.present])
    by_hand = np.where(found.cams.max(0) <= np.float32(0.4), 0, numbers[found.cams.argmax(0)])
    assert np.array_equal(found.mask, by_hand) and 0 < (by_hand > 0).mean() < 1
    for name, cam in zip(found.present, found.cams, strict=True):
        assert np.array_equal(found.cam(name), cam)


def test_the_classifier_decides_which_classes_are_present(model, samples):
    sample = samples[0]
    logits = model.model(sample.image[None]).logits[0].detach().double()
    scores = (1 / (1 + (-logits).exp())).numpy()
    found = model.predict(sample.raw)
    assert list(found.labels) == list(class_names(model.cfg))
    assert list(found.labels.values()) == pytest.approx(scores.tolist())
    middle = float(np.sort(scores)[-2:].mean())
    assert model.predict(sample.raw, label_threshold=middle).present == (model.class_names[scores.argmax()],)
    assert found.present == tuple(name for name, score in zip(model.class_names, scores, strict=True) if score > 0.5)


def test_without_a_present_class_there_is_no_cam_and_nothing_but_background(model, samples):
    found = model.predict(samples[0].raw, label_threshold=0.999999, mask="cam_refined")
    assert found.present == () and found.cams.shape == (0, *samples[0].raw.shape[:2])
    assert not found.mask.any() and "no class" in repr(found)
    assert found._repr_png_().startswith(b"\x89PNG")


def test_without_flip_only_the_image_itself_is_seen(model, samples):
    sample = samples[0]
    found = model.predict(sample.raw, classes=told(model, sample), scales=[1.0, 0.5], flip=False)
    total = 0
    for scale in (1.0, 0.5):
        straight = raw_cams(model.model, sample.image[None], scale)[0, 0]  # final tokens, not mirrored
        total = total + resize(straight, sample.image.shape[-2:]).relu()[0]
    for name in found.present:
        cam = total[model.class_names.index(name)]
        by_hand = (cam - cam.min()) / (cam.max() - cam.min() + 1e-5)
        assert np.allclose(found.cam(name), by_hand, atol=1e-5)
    assert not found.protocol["flip"] and not found.protocol["segmentation"]["flip"]
    mirrored = model.predict(sample.raw, classes=told(model, sample), scales=[1.0, 0.5])
    assert not np.allclose(mirrored.cams, found.cams, atol=1e-3)


def test_a_rule_that_makes_labels_is_checked_like_labels(model, samples):
    image = samples[0].image[None]
    by_rule = native_cams(model.model, model.cfg, image, lambda logits: (logits > -9).float())
    whole = native_cams(model.model, model.cfg, image, torch.ones(1, model.cfg.num_classes))
    assert torch.equal(by_rule.cam, whole.cam)
    with pytest.raises(ValueError, match="0 and 1 alone"):
        native_cams(model.model, model.cfg, image, lambda logits: logits)


# --- sizes and batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(33, 90), (300, 260)])
def test_outputs_have_the_size_of_the_image(model, size):
    raw = np.array(Image.fromarray(make_scene(3, 0, size=96).image).resize(size[::-1]))
    found = model.predict(raw, classes=model.class_names[:2])
    assert found.mask.shape == size and found.cams.shape == found.cams_aux.shape == (2, *size)
    assert np.array_equal(found.image, raw)
    assert found.protocol["longest_side"] == 192  # twice the crop of 96
    assert 0 <= found.cams.min() and found.cams.max() <= 1


def test_a_large_image_is_scaled_down_for_the_model_alone(model):
    raw = np.array(Image.fromarray(make_scene(3, 0, size=96).image).resize((240, 160)))
    small = np.array(Image.fromarray(raw).resize((96, 64), Image.Resampling.LANCZOS))
    found = model.predict(raw, longest_side=96, classes=["striped disc"], mask="cam")
    inner = model.predict(small, classes=["striped disc"], mask="cam")
    enlarged = np.array(Image.fromarray(inner.mask).resize((240, 160), Image.Resampling.NEAREST))
    assert np.array_equal(found.mask, enlarged) and found.labels == inner.labels
    kept = model.predict(raw, longest_side=0, classes=["striped disc"])
    assert kept.labels != inner.labels and kept.protocol["longest_side"] == 0


def test_a_batch_says_what_each_image_alone_says(model, samples):
    images = [samples[0].raw, samples[1].raw, np.ascontiguousarray(samples[2].raw[:64]), samples[3].raw]
    many = list(model.predict_many(iter(images), batch_size=2))
    for image, found in zip(images, many, strict=True):
        alone = model.predict(image)
        assert found.present == alone.present and (found.mask == alone.mask).mean() > 0.99
        assert np.allclose(found.cams, alone.cams, atol=1e-4)


def test_an_image_smaller_than_a_patch_is_refused(model):
    with pytest.raises(DataError, match="image has 20 x 7 pixels: a side is shorter than a patch of 8"):
        model.predict(np.zeros((7, 20, 3), np.uint8))


# --- what an image may be ---------------------------------------------------------------------------------------------


def test_a_file_its_bytes_a_picture_and_an_array_are_one_image(model, samples, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(samples[0].raw).save(path)
    with Image.open(path) as picture:
        found = [model.predict(one) for one in (path, str(path), path.read_bytes(), picture, samples[0].raw)]
    assert [one.name for one in found] == ["photo", "photo", "image", "photo", "image"]
    assert all(np.array_equal(one.mask, found[0].mask) and one.labels == found[0].labels for one in found)


def test_pictures_and_arrays_are_read_by_the_rules_of_files(tmp_path):
    rng = np.random.default_rng(0)
    alpha = rng.integers(0, 256, (5, 6, 4), dtype=np.uint8)
    wide = rng.integers(300, 65536, (5, 6), dtype=np.uint16)
    for name, array in (("alpha", alpha), ("wide", wide), ("grey", alpha[..., 0])):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
        assert np.array_equal(read_image(array), read_rgb(tmp_path / f"{name}.png")), name
    colours = alpha[..., :3]
    assert np.array_equal(read_image(colours / 255), colours) and np.array_equal(
        read_image(colours * 257.0 / 257), colours
    )
    assert np.array_equal(read_image(colours.astype(np.uint16) * 257), colours)
    turned = Image.fromarray(colours)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    turned.save(file, "PNG", exif=exif)
    assert np.array_equal(read_image(Image.open(file)), np.rot90(colours, -1))
    assert np.array_equal(read_image(file.getvalue()), np.rot90(colours, -1))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (3, "a path, bytes, a PIL image or an array, got int"),
        (np.zeros((2, 3, 4, 5)), r"got \(2, 3, 4, 5\)"),
        (np.zeros((3, 8, 9), np.uint8), r"got \(3, 8, 9\)"),
        (np.zeros((4, 4), complex), "must hold numbers, got complex128"),
        (np.full((4, 4), 300.0), "floating point numbers from 300 to 300"),
        (np.full((4, 4, 3), np.nan), "nan"),
        (b"no picture", "cannot decode the image"),
        ("no/such.png", "there is no file no/such.png"),
    ],
)
def test_what_is_no_image_is_named(image, message):
    with pytest.raises(ValueError, match=message):
        read_image(image)


# --- options and protocol ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "segm"}, "mask must be one of auto, seg, cam, cam_refined, cam_aux, got 'segm'"),
        ({"classes": ["striped dics"]}, "unknown class 'striped dics', did you mean 'striped disc'"),
        ({"classes": "striped disc"}, "a list of names"),
        ({"label_threshold": 1}, "between 0 and 1, got 1"),
        ({"background_threshold": 0.3}, "no effect on the decoder's mask"),
        ({"mask": "cam", "background_threshold": 1.5}, "background_threshold"),
        ({"scales": [0.0]}, "cam_scales"),
        ({"mask": "cam_refined", "crf": True}, "the CRF follows the decoder's mask or the plain CAM"),
        ({"longest_side": -1}, "longest_side must be"),
        ({"treshold": 1}, "unknown option 'treshold', did you mean 'label_threshold'"),
        ({"batch_size": 0}, "at least 1 image, got 0"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_met_are_named(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.predict_many([], **options)


def test_the_mask_is_the_decoders_where_one_was_trained(model):
    assert model.recipe().mask == "seg" and model.recipe().because == "the run trained a decoder"
    cfg = model.cfg
    plain = Predictor(model.model, cfg.replace(w_seg=0.0))
    assert plain.recipe().mask == "cam_refined" and "w_seg is 0" in plain.recipe().because
    early = Predictor(model.model, cfg, step=1)  # step 0 alone was made, the decoder begins with step 1
    assert early.recipe().because == "after 1 step the decoder was not trained (from step 1 on)"
    assert why_no_decoder(cfg, 2) == "" and why_no_decoder(cfg.replace(late_segmentation=True), 2) != ""


def test_the_protocol_says_what_defines_a_mask(model, smoke_run, samples):
    record = model.predict(samples[0].raw, mask="cam", crf=True, label_threshold=0.4).protocol
    assert record["checkpoint"] == smoke_run.read_json("protocol")["cam"]["checkpoint"]
    assert (record["mask"], record["mask_because"], record["label_threshold"]) == ("cam", "asked for", 0.4)
    assert (record["scales"], record["flip"], record["image_size"]) == ([1.0, 0.5], True, "native")
    assert record["background_threshold"] == 0.5 and record["true_labels_mask_cam"] is False
    assert record["crf"]["bilateral_sigma_xy"] == 121 and record["par"] is False and record["segmentation"] is None
    assert "EXIF" in record["decoder"] and record["classes"] == list(model.class_names)
    told = model.predict(samples[0].raw, classes=model.class_names[1::-1]).protocol
    assert told["told_classes"] == list(model.class_names[:2]) and told["label_threshold"] is None
    assert told["segmentation"] == {
        "image_size": "native", "scales": [1.0], "flip": True, "fusion": "sum over flip, maximum over scales",
    }  # fmt: skip
    assert told["background_threshold"] is None


# --- the result -------------------------------------------------------------------------------------------------------


def test_show_draws_below_the_cell_or_in_a_viewer(model, samples, monkeypatch):
    found, seen = model.predict(samples[0].raw), []
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    monkeypatch.setattr(Image.Image, "show", lambda picture, title: seen.append((picture.size, title)))
    found.show()
    assert seen[0][0][0] > 300 and seen[0][1] == "image"
    ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython, display.display = object, seen.append
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    found.show()
    assert seen[1] is found and len(seen) == 2


def test_a_result_draws_and_saves_itself(model, samples, tmp_path):
    found = model.predict(samples[0].raw, classes=model.class_names[:5], mask="cam")
    axes = [ax for ax in found.figure().axes if ax.get_title()]
    strongest = sorted(found.labels, key=lambda name: -found.labels[name] if name in found.present else 1)[:4]
    titles = [ax.get_title() for ax in axes]
    assert titles == ["image", *(f"CAM {name} ({100 * found.labels[name]:.0f} %)" for name in strongest), "mask"]
    assert np.array_equal(axes[1].images[1].get_array(), found.cam(strongest[0]))
    files = found.save(tmp_path, scores=True)
    assert all(path.is_file() for path in files) and len(files) == 7
    with Image.open(tmp_path / "masks" / "image.png") as mask:
        assert mask.mode == "P" and np.array_equal(np.array(mask), found.mask)
    with np.load(tmp_path / "scores" / "image.npz") as soft:
        assert soft["classes"].tolist() == [1, 2, 3, 4, 5]
        assert np.allclose(soft["scores"], found.cams, atol=1e-3) and np.allclose(
            soft["aux"], found.cams_aux, atol=1e-3
        )
    with pytest.raises(ValueError, match="not among the present classes"):
        found.cam("nothing")


def test_an_object_of_a_method_without_cams_has_the_score_of_its_class(tmp_path):
    mask, none = np.zeros((40, 60), np.uint8), np.zeros((0, 40, 60), np.float32)
    mask[5:25, 10:40] = 2
    made = Prediction(
        name="one", image=np.zeros((40, 60, 3), np.uint8), labels={"cat": 0.6, "dog": 0.7}, present=("cat", "dog"),
        cams=none, cams_aux=none, mask=mask, class_names=("cat", "dog"), protocol={},
    )  # fmt: skip
    [found] = made.instances
    assert (found.number, found.box, found.score) == (2, (10, 5, 40, 25), pytest.approx(0.7))
    made.save(tmp_path, boxes=True)
    [entry] = json.loads((tmp_path / "boxes" / "one.json").read_text())
    assert (entry["category_id"], entry["bbox"], entry["score"]) == (2, [10, 5, 30, 20], 0.7)
    assert not (tmp_path / "cams").exists()
