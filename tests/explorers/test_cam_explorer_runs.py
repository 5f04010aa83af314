"""The CAM explorer with two runs, with others, and with none that opens."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cam_explorer import show

from toco_lab.attribution.faithfulness import map_scores
from toco_lab.config import Config
from toco_lab.data.classes import class_names
from toco_lab.explorers.cam_controls import NO_RUN, USUAL
from toco_lab.explorers.cam_explorer import CamExplorer
from toco_lab.method.model import ToCo
from toco_lab.runs.run_dir import RunDir


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
