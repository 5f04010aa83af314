"""What goes into the CAM explorer and comes out of it as a file: uploads, settings, saved pictures."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.cam_explorer import np_png, pixels, png, show, upload
from PIL import Image

from toco_lab.data.classes import class_names
from toco_lab.explorers.cam_controls import STRONGEST
from toco_lab.explorers.cam_explorer import CamExplorer
from toco_lab.runs.run_dir import RunDir


def test_an_upload_is_shown_with_predicted_labels(explorer):
    upload(explorer, png())
    assert explorer.message.value == ""
    assert explorer.image_picker.value == "upload 1: mine.png"
    assert explorer.session.image.raw.shape == (48, 40, 3)
    assert "predicted by the model" in explorer.text.value
    assert explorer.panel("truth").note == "no mask is known"
    assert "mIoU" not in explorer.text.value
    upload(explorer, png("blue"))  # the same name: another picture
    assert explorer.session.image.raw[0, 0].tolist() == [0, 0, 255]
    explorer.image_slider.value = 0
    explorer.image_picker.value = "upload 1: mine.png"
    assert explorer.session.image.raw[0, 0].tolist() == [255, 0, 0]


def test_after_an_upload_a_class_is_shown_that_the_model_sees(explorer):
    names = class_names(explorer.session.cfg)
    absent = next(i for i in range(len(names)) if i not in explorer.session.image.present)
    explorer.class_picker.value = absent
    upload(explorer, np_png(explorer.session.image.raw))
    image = explorer.session.image
    best = int(image.output.logits[0].argmax())
    assert explorer.class_picker.value == image.strongest_class == best
    score = 100 * float(image.output.logits[0, best].sigmoid())
    assert explorer.class_picker.label == f"{names[best]} (predicted, {score:.0f} %)"
    assert f"CAM: {names[best]}" in explorer.text.value
    explorer.image_slider.value = 0  # nobody chose that class: it goes with the upload
    assert explorer.class_picker.value == STRONGEST
    explorer.class_picker.value = image.present[-1]
    explorer.image_picker.value = "upload 1: mine.png"
    assert explorer.class_picker.value == image.present[-1]  # the model sees it: what somebody chose stays


@pytest.mark.parametrize(
    ("edge", "size", "sizes"),
    [
        (0, (40, 48), "40 x 48"),
        (0, (400, 100), "400 x 100, shown and read at 192 x 48"),
        (64, (40, 48), "40 x 48, read at 64 x 64"),
        (64, (2048, 1024), "2048 x 1024, shown at 1024 x 512, read at 64 x 64"),
        (64, (64, 64), "64 x 64"),
    ],
)
def test_an_upload_says_when_it_is_scaled_down(pair, edge, size, sizes):
    model, cfg = pair
    explorer = CamExplorer((model, cfg.replace(eval_cam_size=edge)))
    upload(explorer, png(size=size))
    assert explorer.panel("image").note == sizes
    assert f"upload 1: mine.png, {sizes} pixels, image labels" in explorer.text.value


def test_a_turned_upload_has_the_size_it_is_seen_at(explorer):
    picture, file = Image.new("RGB", (400, 100)), io.BytesIO()
    exif = picture.getexif()
    exif[0x0112] = 6  # turn by a quarter
    picture.save(file, "jpeg", exif=exif)
    upload(explorer, file.getvalue())
    assert explorer.panel("image").note == "100 x 400, shown and read at 48 x 192"


def test_a_damaged_upload_keeps_the_picture(explorer):
    before, options = explorer.picture.value, explorer.image_picker.options
    upload(explorer, png()[:50], "broken.png")
    assert "save it again as PNG or JPEG" in explorer.message.value
    assert explorer.picture.value == before
    assert explorer.image_picker.options == options
    upload(explorer, png(size=(9, 9)), "tiny.png")  # a proper image, too small for the model at half size
    assert "smaller than one patch" in explorer.message.value
    assert explorer.picture.value == before
    assert explorer.image_picker.value == "toy_val_000000"
    explorer.low.value = 0.3
    assert explorer.message.value == ""


def test_without_data_one_can_still_upload(pair):
    model, cfg = pair
    explorer = CamExplorer((model, cfg.replace(val_images=0)))
    assert "no images to choose from, but you can upload one" in explorer.message.value
    assert explorer.picture.value == b""
    with pytest.raises(RuntimeError, match="no picture yet"):
        explorer.figure()
    upload(explorer, png())
    assert explorer.picture.value != b""
    assert explorer.message.value == ""


def test_settings_bring_the_picture_back(explorer, pair):
    explorer.image_slider.value = 2
    explorer.low.value, explorer.high.value, explorer.background.value, explorer.opacity.value = 0.15, 0.55, 0.35, 0.9
    explorer.source.value, explorer.flip.value, explorer.class_picker.value = "cam_aux", False, 3
    explorer.scale_boxes.children[0].value = False
    explorer.block.value = 2
    explorer.refine.click()
    explorer.other_crops.click()
    explorer.low.value = 0.25
    show(explorer, "auxiliary CAM", "CAM label", "refined label", "regions and crops")
    settings = json.loads(json.dumps(explorer.settings()))
    assert settings["refined"]["low"] == 0.15
    assert settings["low"] == 0.25
    other = CamExplorer(pair)
    other.apply(settings)
    assert other.settings() == settings
    assert other.picture.value == explorer.picture.value
    explorer.views["refined label"].value = False  # kept, not shown
    other.apply(explorer.settings())
    assert other.settings() == explorer.settings()
    assert other.picture.value == explorer.picture.value
    other.apply({"refined": None, "class": None})
    assert other.class_picker.value == STRONGEST
    assert other.panel("refined label").array is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lows": 0.1}, "unknown settings lows"),
        ({"run": "gone"}, "no run 'gone'"),
        ({"image": "gone"}, "no image 'gone'"),
        ({"scales": [3.0]}, "no scale 3.0; there are: 1.0, 0.5"),
        ({"class": "unicorn"}, "no class 'unicorn'"),
        ({"views": ["CAM", "gone"]}, "no view 'gone'"),
        ({"block": 5}, "no block 5; there are: 1, 2, 3, 4"),
        ({"low": 0.9}, "low < high <= 1, got 0.9 and 0.7"),
    ],
)
def test_settings_that_do_not_exist_are_refused(explorer, settings, message):
    before = explorer.settings()
    with pytest.raises(ValueError, match=message):
        explorer.apply(settings)
    assert explorer.settings() == before


def test_saved_pictures_hold_their_settings(smoke_run, tmp_path: Path):
    run = RunDir(shutil.copytree(smoke_run.path, tmp_path / "run"))
    explorer = CamExplorer(run)
    image = Image.open(explorer.save(tmp_path / "a.png"))
    assert json.loads(image.text["settings"]) == explorer.settings()
    np.testing.assert_array_equal(np.asarray(image), pixels(explorer))
    explorer.save_button.click()
    assert "cam_explorer_toy_val_000000.png" in explorer.message.value
    assert (run.path / "figures" / "cam_explorer_toy_val_000000.png").is_file()
    file = io.BytesIO()
    explorer.figure().savefig(file, format="png", dpi=110)
    np.testing.assert_array_equal(np.asarray(Image.open(file).convert("RGB")), pixels(explorer))
