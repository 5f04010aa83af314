"""The explorer without a browser: set a control, read the picture; errors are shown, never raised in a callback."""

import io
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from toco_lab.attribution.catalogue import Attribution
from toco_lab.attribution.faithfulness import map_scores
from toco_lab.config import Config
from toco_lab.data.classes import PALETTE, class_names
from toco_lab.data.loader import eval_samples
from toco_lab.explorers import cam_session
from toco_lab.explorers.cam_controls import FIRST_VIEWS, NO_RUN, STRONGEST, USUAL
from toco_lab.explorers.cam_explorer import CamExplorer
from toco_lab.explorers.cam_panels import VIEWS
from toco_lab.explorers.panels import label_legend, panel_row
from toco_lab.method.model import ToCo
from toco_lab.runs.run_dir import RunDir


@pytest.fixture(scope="module")
def pair() -> tuple[ToCo, Config]:
    """A model of random weights, read only."""
    cfg = Config.preset("smoke")
    torch.manual_seed(0)
    return ToCo(cfg).eval(), cfg


@pytest.fixture
def explorer(pair) -> CamExplorer:
    return CamExplorer(pair)


def show(explorer, *views):
    for view, button in explorer.views.items():
        button.value = view in views


def pixels(explorer):
    return np.asarray(Image.open(io.BytesIO(explorer.picture.value)))


def png(colour="red", size=(40, 48)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "png")
    return file.getvalue()


def np_png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def upload(explorer, content, name="mine.png"):
    file = {"name": name, "type": "image/png", "size": len(content), "content": memoryview(content)}
    explorer.upload.value = (file | {"last_modified": datetime(2024, 1, 1, tzinfo=UTC)},)


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_opens_with_the_first_image(explorer, pair):
    model, cfg = pair
    sample = eval_samples(cfg, model.mean, model.std)[0]
    assert explorer.message.value == ""
    assert [view for view, button in explorer.views.items() if button.value] == list(FIRST_VIEWS)
    np.testing.assert_array_equal(explorer.session.image.raw, sample.raw)
    assert explorer.image_picker.options == tuple(f"toy_val_{i:06d}" for i in range(4))
    assert f"{sample.name}, 96 x 96 pixels, image labels (true): " in explorer.text.value
    assert (explorer.low.value, explorer.high.value) == (cfg.low_threshold, cfg.high_threshold)
    assert pixels(explorer).std() > 20
    assert "Panels: CAM: strongest class (mean: object" in explorer.text.value


def test_tooltips_are_on_widgets_with_a_description_only(explorer):
    """Any other is replaced by "Click to show javascript error" in the browser."""
    found = [explorer]
    for widget in found:
        found += getattr(widget, "children", ())
    described = [widget for widget in found if getattr(widget, "tooltip", None)]
    assert len(described) > 20
    assert all(widget.description for widget in described)


def test_the_picture_is_the_sessions_answer(explorer, pair):
    show(explorer, "pseudo label", "CAM")
    explorer.low.value, explorer.high.value, explorer.source.value = 0.2, 0.6, "cam_aux"
    explorer.opacity.value = 0.8
    session = explorer.session
    label = session.pseudo_label(0.2, 0.6, "cam_aux")
    iou = session.iou(label)
    cam, pseudo = explorer.panel("CAM"), explorer.panel("pseudo label")
    np.testing.assert_array_equal(pseudo.array, label)
    np.testing.assert_array_equal(cam.array, session.score("cam"))
    assert pseudo.note == f"mIoU {100 * iou.miou:.1f} %, {100 * iou.left_open:.0f} % left open"
    assert pseudo.legend == label_legend(PALETTE, ("background", *class_names(pair[1])))
    np.testing.assert_array_equal(pixels(explorer), panel_row(session.image.raw, [cam, pseudo], opacity=0.8, side=290))
    assert f"<td>{100 * iou.miou:.1f}</td>" in explorer.text.value


def test_each_view_shows_what_it_says(explorer):
    session = explorer.session
    explorer.background.value = 0.3
    expected = {
        "image": session.image.raw,
        "auxiliary CAM": session.score("cam_aux"),
        "CAM label": session.label("cam", 0.3),
        "segmentation": session.segmentation(),
        "truth": session.image.truth,
        "regions and crops": session.region(),
        "Grad-CAM": session.attribution("Grad-CAM", session.image.strongest_class),
    }
    for view, array in expected.items():
        np.testing.assert_array_equal(explorer.panel(view).array, array)
    show(explorer, *VIEWS)
    assert explorer.message.value == ""
    with pytest.raises(ValueError, match="unknown view 'nothing'"):
        explorer.panel("nothing")


def test_the_note_of_a_map_tells_object_from_ground(explorer):
    session = explorer.session
    score, truth = session.score("cam"), session.image.truth
    on, off = score[truth > 0].mean(), score[truth == 0].mean()
    assert explorer.panel("CAM").note == f"mean: object {on:.2f}, ground {off:.2f}"
    absent = next(i for i in range(6) if i not in session.image.present)
    explorer.class_picker.value = absent
    assert explorer.panel("CAM").note == f"mean {session.score('cam', absent).mean():.2f}"


def test_crops_are_boxes_and_can_be_drawn_again(explorer):
    crops = explorer.session.local_crops(seed=0)
    boxes = explorer.panel("regions and crops").crops
    assert [box.top for box in boxes] == crops.top[0].tolist()
    assert [box.left for box in boxes] == crops.left[0].tolist()
    assert [box.kind for box in boxes] == crops.kind[0].tolist()
    explorer.other_crops.click()
    assert explorer.views["regions and crops"].value
    assert [box.top for box in explorer.panel("regions and crops").crops] == explorer.session.local_crops(seed=1).top[
        0
    ].tolist()


@pytest.mark.parametrize(
    ("name", "value", "view"),
    [
        ("low", 0.5, "pseudo label"),
        ("high", 0.5, "pseudo label"),
        ("background", 0.3, "CAM label"),
        ("opacity", 0.2, "CAM"),
        ("source", "cam_aux", "pseudo label"),
        ("flip", False, "CAM"),
        ("class_picker", 0, "CAM"),
        ("block", 2, "Grad-CAM"),
        ("image_slider", 2, "image"),
        ("image_picker", "toy_val_000003", "truth"),
    ],
)
def test_every_control_changes_the_picture(explorer, name, value, view):
    show(explorer, view)
    before = explorer.picture.value
    getattr(explorer, name).value = value
    assert explorer.picture.value != before
    assert explorer.message.value == ""


def test_scales_change_the_picture_and_one_stays(explorer):
    before = explorer.picture.value
    large, small = explorer.scale_boxes.children
    assert (large.description, small.description) == ("scale 1", "scale 0.5")
    large.value = False
    assert explorer.picture.value != before
    np.testing.assert_array_equal(explorer.panel("CAM").array, explorer.session.score("cam", scales=(0.5,)))
    small.value = False
    assert small.value
    assert "one scale at least" in explorer.message.value


def test_present_classes_come_first(explorer):
    values = [value for _, value in explorer.class_picker.options]
    present = list(explorer.session.image.present)
    assert values[: 1 + len(present)] == [STRONGEST, *present]
    assert sorted(values[1:]) == list(range(6))


def test_slider_and_picker_move_together(explorer):
    explorer.image_slider.value = 3
    assert explorer.image_picker.value == explorer.session.image.name == "toy_val_000003"
    explorer.image_picker.value = "toy_val_000001"
    assert explorer.image_slider.value == 1


def test_thresholds_never_cross(explorer):
    explorer.low.value = 0.9
    assert (explorer.low.value, explorer.high.value) == (0.9, 0.91)
    assert "high moved to 0.91" in explorer.message.value
    explorer.high.value = 0.3
    assert (explorer.low.value, explorer.high.value) == (0.29, 0.3)
    assert "low moved to 0.29" in explorer.message.value
    explorer.high.value = 0.0
    assert (explorer.low.value, explorer.high.value) == (0.0, 0.01)
    explorer.low.value = 1.0
    assert (explorer.low.value, explorer.high.value) == (0.99, 1.0)
    explorer.background.value = 0.6
    assert explorer.message.value == ""  # said once


def test_the_encoder_runs_once_per_image(pair):
    model, _ = pair
    calls = []
    hook = model.encoder.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    explorer = CamExplorer(pair)
    assert len(calls) == 3  # plain, mirrored, half size as a pair
    show(explorer, *(set(VIEWS) - set(cam_session.ATTRIBUTIONS)))
    explorer.low.value, explorer.high.value, explorer.flip.value, explorer.class_picker.value = 0.1, 0.9, False, 2
    explorer.refine.click()
    assert len(calls) == 3
    explorer.image_slider.value = 1
    assert len(calls) == 6
    hook.remove()


def test_attributions_are_read_at_the_chosen_block(explorer):
    session, strongest = explorer.session, explorer.session.image.strongest_class
    assert [value for _, value in explorer.block.options] == [USUAL, 1, 2, 3, 4]
    assert explorer.block.disabled  # no attribution is shown
    show(explorer, "attention rollout", "CAM")
    assert not explorer.block.disabled
    explorer.block.value = 2
    panel = explorer.panel("attention rollout")
    np.testing.assert_array_equal(panel.array, session.attribution("attention rollout", strongest, 2))
    assert panel.title == "attention rollout (block 2)"
    assert explorer.panel("CAM").title == "CAM: strongest class"


# --- slow actions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["par", "crf", "pamr", "patch+par"])
def test_refining_waits_for_its_button(explorer, method):
    assert explorer.panel("refined label").note == "press Refine: 0.25 to 0.70, CAM, scales 1, 0.5, flip"
    explorer.low.value = 0.2
    explorer.refinement.value = method
    explorer.refine.click()
    panel = explorer.panel("refined label")
    assert explorer.views["refined label"].value
    np.testing.assert_array_equal(panel.array, explorer.session.refined_label(0.2, method=method))
    title = {"patch+par": "patch affinity, PAR"}.get(method, method.upper())
    assert panel.title == f"{title} of 0.20 to 0.70"
    explorer.low.value = 0.5
    assert explorer.panel("refined label").title == f"{title} of 0.20 to 0.70"  # still that one, and says so
    assert explorer.progress.value == ""
    explorer.image_slider.value = 1
    assert explorer.panel("refined label").array is None


def test_faithfulness_waits_for_its_button_and_stays_with_its_map(explorer):
    show(explorer, "CAM", "Grad-CAM", "truth")
    chosen = explorer.session.image.present[0]
    explorer.class_picker.value = chosen
    low = explorer.picture.value
    assert explorer.panel("CAM").details == ""
    explorer.measure_button.click()
    session = explorer.session
    for view, score in (("CAM", session.score("cam", chosen)), ("Grad-CAM", session.attribution("Grad-CAM", chosen))):
        where = session.image.truth == chosen + 1
        found = map_scores(session.model, session.image.pixels, score[None], chosen, on_class=where)[0]
        details = explorer.panel(view).details
        assert details.startswith(f"insertion {found.insertion_area:.2f}, deletion {found.deletion_area:.2f}, top ")
        assert details.endswith("on it" if found.distance == 0 else f"{found.distance:.0f} px off")
        assert details in explorer.text.value
    assert explorer.panel("truth").details == "" and explorer.progress.value == explorer.message.value == ""
    assert pixels(explorer).shape[0] > np.asarray(Image.open(io.BytesIO(low))).shape[0]  # a line more
    explorer.flip.value = False
    assert explorer.panel("CAM").details == ""  # another map
    assert explorer.panel("Grad-CAM").details != ""
    explorer.flip.value = True
    assert explorer.panel("CAM").details != ""


def test_faithfulness_says_what_cannot_be_measured(explorer):
    show(explorer, "CAM", "Grad-CAM")
    explorer.measure_button.click()
    assert "choose one class to measure this map" in explorer.text.value
    assert "Grad-CAM: " in explorer.text.value and "insertion 0." in explorer.text.value
    show(explorer, "truth")
    explorer.measure_button.click()
    assert "no map is shown: switch on CAM, Grad-CAM or another one" in explorer.message.value
    upload(explorer, png())
    show(explorer, "Grad-CAM")
    explorer.measure_button.click()
    assert "insertion" in explorer.text.value and ", top" not in explorer.text.value  # nobody knows where it is


# --- runs and images of one's own -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_pair() -> tuple[ToCo, Config]:
    """Another model for the same data, read only."""
    cfg = Config.preset("smoke").replace(w_ptc=0.0)
    torch.manual_seed(1)
    return ToCo(cfg).eval(), cfg


def test_two_runs_share_image_class_and_sliders(pair, other_pair):
    calls = [0, 0]
    hooks = [
        model.encoder.patch_embed.register_forward_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
        for i, (model, _) in enumerate((pair, other_pair))
    ]
    explorer = CamExplorer(pair, other_pair)
    first, second = explorer.sessions
    assert (explorer.run_picker.value, explorer.beside.value) == (first, second) == explorer.run_picker.options
    assert calls == [3, 3]  # an encoder pass each, with its mirror image and half size
    for control, value in (("image_slider", 1), ("low", 0.1), ("class_picker", 2), ("flip", False)):
        getattr(explorer, control).value = value
    assert calls == [6, 6]
    for session in explorer.sessions.values():
        assert session.image.name == "toy_val_000001" and session.image.label_source == "true"
    for run, session in explorer.sessions.items():
        np.testing.assert_array_equal(explorer.panel("CAM", run).array, session.score("cam", 2, flip=False))
        label = explorer.panel("pseudo label", run).array
        np.testing.assert_array_equal(label, session.pseudo_label(0.1, 0.7, flip=False))
    assert (explorer.panel("CAM", first).array != explorer.panel("CAM", second).array).any()
    assert [(one["heading"], one["view"]) for one in explorer.picture.panels] == [
        (first, 0), (first, 1), (first, 2), ("all runs", 3), (second, 0), (second, 1), (second, 2),
    ]  # fmt: skip
    assert explorer.text.value.count("Panels:") == 2 and f"<p>{second}: toy_val_000001" in explorer.text.value
    for hook in hooks:
        hook.remove()


def test_two_runs_share_block_and_faithfulness(pair, other_pair):
    explorer = CamExplorer(pair, other_pair)
    show(explorer, "CAM", "Grad-CAM", "attention rollout")
    chosen = explorer.session.image.present[0]
    explorer.class_picker.value, explorer.block.value = chosen, 2
    name = class_names(pair[1])[chosen]
    explorer.measure_button.click()
    for run, session in explorer.sessions.items():
        array = explorer.panel("Grad-CAM", run).array
        np.testing.assert_array_equal(array, session.attribution("Grad-CAM", chosen, 2))
        score = session.score("cam", chosen)
        where = session.image.truth == chosen + 1
        found = map_scores(session.model, session.image.pixels, score[None], chosen, on_class=where)[0]
        measured = f"insertion {found.insertion_area:.2f}, deletion {found.deletion_area:.2f}"
        assert explorer.panel("CAM", run).details.startswith(measured)
        assert explorer.panel("attention rollout", run).details.endswith(f", of {name}")
    assert explorer.text.value.count("insertion ") == 6
    assert all("insertion " in one["details"] and one["details"] in one["words"] for one in explorer.picture.panels)
    assert explorer.settings()["block"] == 2


def test_blocks_are_those_that_both_runs_have(pair):
    torch.manual_seed(3)
    cfg = pair[1].replace(w_ptc=0.0)
    shallow = ToCo(cfg).eval()
    shallow.encoder.blocks = shallow.encoder.blocks[:3]
    explorer = CamExplorer(pair, (shallow, cfg))
    assert [value for _, value in explorer.block.options] == [USUAL, 1, 2, 3]
    explorer.beside.value = NO_RUN
    explorer.block.value = 4
    explorer.beside.value = explorer.run_picker.options[1]
    assert [value for _, value in explorer.block.options] == [USUAL, 1, 2, 3]
    assert explorer.block.value == USUAL


def test_the_second_run_can_go_swap_and_come_back(pair, other_pair):
    explorer = CamExplorer([pair, other_pair])
    first, second = explorer.run_picker.options
    both = explorer.picture.value
    explorer.beside.value = NO_RUN
    assert list(explorer.sessions) == [first]
    assert explorer.picture.value == CamExplorer(pair).picture.value
    explorer.beside.value = second
    assert explorer.picture.value == both
    explorer.run_picker.value = second
    assert list(explorer.sessions) == [second, first]
    settings = explorer.settings()
    assert (settings["run"], settings["beside"]) == (second, first)
    explorer.apply({"run": first, "beside": second})
    assert explorer.picture.value == both
    explorer.refine.click()
    for run, session in explorer.sessions.items():
        np.testing.assert_array_equal(explorer.panel("refined label", run).array, session.refined_label())
    with pytest.raises(ValueError, match="no run beside it"):
        explorer.apply({"beside": first})
    with pytest.raises(ValueError, match="no run 'third'"):
        explorer.panel("CAM", "third")


def test_a_run_with_other_classes_predicts_its_labels_and_knows_its_own(pair):
    torch.manual_seed(2)
    shared = class_names(pair[1])[1]
    cfg = pair[1].replace(dataset="folder", data_root="nowhere", num_classes=3, classes=("cat", shared, "dog"))
    explorer = CamExplorer(pair, (ToCo(cfg).eval(), cfg))
    _, second = explorer.sessions
    assert explorer.sessions[second].image.label_source == "predicted"
    names = class_names(pair[1])
    explorer.class_picker.value = 1
    score = explorer.sessions[second].score("cam", 1)
    np.testing.assert_array_equal(explorer.panel("CAM", second).array, score)
    absent = next(name for name in names if name not in cfg.classes)
    explorer.class_picker.value = names.index(absent)
    assert f"{second}, CAM: this run does not know the class &#x27;{absent}&#x27;" in explorer.message.value
    assert explorer.panel("pseudo label", second).array is not None


def test_runs_are_compared_on_one_image(smoke_run, pair):
    explorer = CamExplorer([smoke_run, pair], pair)
    explorer.beside.value = NO_RUN
    name = pair[1].run_name()
    assert explorer.run_picker.options == ("smoke", name, f"{name} (2)")
    explorer.image_slider.value = 2
    before = explorer.picture.value
    explorer.run_picker.value = name
    assert explorer.session.model is pair[0]
    assert explorer.session.image.name == "toy_val_000002"
    assert explorer.picture.value != before
    explorer.run_picker.value = "smoke"
    assert explorer.picture.value == before


def test_a_run_that_can_not_be_opened_is_named_and_left(pair, tmp_path: Path):
    explorer = CamExplorer([pair, RunDir.create(pair[1], tmp_path, name="untrained")])
    for attempt in ("constructor", "beside", "run_picker"):
        before = explorer.picture.value
        if attempt != "constructor":
            explorer.low.value += 0.01
            assert explorer.message.value == "" and explorer.picture.value != before
            before = explorer.picture.value
            getattr(explorer, attempt).value = "untrained"
        assert explorer.message.value.count("untrained") == 2
        assert "has no checkpoint yet; train it first" in explorer.message.value
        assert explorer.picture.value == before != b""
        assert (explorer.run_picker.value, explorer.beside.value) == (pair[1].run_name(), NO_RUN)


def test_nothing_works_without_an_open_run_and_says_so(pair, tmp_path: Path):
    explorer = CamExplorer([RunDir.create(pair[1], tmp_path, name="untrained"), pair])
    assert "train it first" in explorer.message.value
    with pytest.raises(RuntimeError, match="untrained is not open"):
        explorer.settings()
    explorer.refine.click()
    assert "untrained is not open" in explorer.message.value
    explorer.run_picker.value = pair[1].run_name()
    assert explorer.message.value == ""
    assert explorer.session.image.name == "toy_val_000000"


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


def test_controls_that_move_nothing_are_disabled_and_say_why(explorer):
    """Each control that is not disabled changes the picture, each that is does not."""
    other = {
        "low": 0.1, "high": 0.9, "background": 0.3, "opacity": 0.2, "source": "cam_aux", "flip": False,
        "class_picker": 1, "block": 2,
    }  # fmt: skip
    for views in (
        ["image"], ["CAM"], ["CAM label"], ["pseudo label", "truth"], ["refined label"], ["segmentation"], ["Grad-CAM"],
    ):  # fmt: skip
        show(explorer, *views)
        for name, value in other.items():
            control, before, picture = getattr(explorer, name), getattr(explorer, name).value, explorer.picture.value
            notes = [panel["note"] for panel in explorer.picture.panels]
            control.value = value
            moved = explorer.picture.value != picture or notes != [panel["note"] for panel in explorer.picture.panels]
            assert moved == (not control.disabled), (views, name)
            said = f"{control.description} (moves " in explorer.idle.value
            assert said == control.disabled == control.tooltip.startswith("moves nothing that is shown, only: ")
            control.value = before
        assert all(box.disabled == ("scales (moves" in explorer.idle.value) for box in explorer.scale_boxes.children)
        maps = set(views) & {"CAM", "Grad-CAM"}
        assert explorer.measure_button.disabled == (not maps) == ("Faithfulness (moves " in explorer.idle.value)
    show(explorer, "class token attention")
    assert explorer.class_picker.disabled and not explorer.block.disabled  # it knows no class
    show(explorer, "CAM label", "pseudo label", "CAM", "Grad-CAM")
    assert explorer.idle.value == ""


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


def test_names_are_text_not_html(explorer):
    upload(explorer, png(), "<img src=x>.png")
    assert "&lt;img src=x&gt;" in explorer.text.value
    assert "<img" not in explorer.text.value


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


def test_a_view_that_fails_says_so_beside_the_others(explorer, monkeypatch):
    def broken(*_):
        raise RuntimeError("no gradient <here>")

    monkeypatch.setitem(cam_session.ATTRIBUTIONS, "Grad-CAM", Attribution(broken, "what it shows"))
    show(explorer, "CAM", "Grad-CAM")
    assert "Grad-CAM: no gradient &lt;here&gt;" in explorer.message.value
    assert "CAM: strongest class" in explorer.text.value
    explorer.views["Grad-CAM"].value = False
    assert explorer.message.value == ""


# --- settings, files --------------------------------------------------------------------------------------------------


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


def test_needs_a_run():
    with pytest.raises(ValueError, match="at least one run"):
        CamExplorer([])
