"""The explorer without a browser: set a control, read the picture; errors are shown, never raised in a callback."""

import io

import numpy as np
import pytest
from helpers.cam_explorer import pixels, png, show, upload
from PIL import Image

from toco_lab.attribution.catalogue import Attribution
from toco_lab.attribution.faithfulness import map_scores
from toco_lab.data.classes import PALETTE, class_names
from toco_lab.data.loader import eval_samples
from toco_lab.explorers import cam_session
from toco_lab.explorers.cam_controls import FIRST_VIEWS, STRONGEST, USUAL
from toco_lab.explorers.cam_explorer import CamExplorer
from toco_lab.explorers.cam_panels import VIEWS
from toco_lab.explorers.panels import label_legend, panel_row


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


def test_names_are_text_not_html(explorer):
    upload(explorer, png(), "<img src=x>.png")
    assert "&lt;img src=x&gt;" in explorer.text.value
    assert "<img" not in explorer.text.value


def test_a_view_that_fails_says_so_beside_the_others(explorer, monkeypatch):
    def broken(*_):
        raise RuntimeError("no gradient <here>")

    monkeypatch.setitem(cam_session.ATTRIBUTIONS, "Grad-CAM", Attribution(broken, "what it shows"))
    show(explorer, "CAM", "Grad-CAM")
    assert "Grad-CAM: no gradient &lt;here&gt;" in explorer.message.value
    assert "CAM: strongest class" in explorer.text.value
    explorer.views["Grad-CAM"].value = False
    assert explorer.message.value == ""


def test_needs_a_run():
    with pytest.raises(ValueError, match="at least one run"):
        CamExplorer([])
