"""Faithfulness over a data set: the table is the mean of what `map_scores` says, and a true map beats its controls."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from helpers.attributions import SIZES, spread

import toco_lab as tl
from toco_lab.attribution import asked
from toco_lab.attribution.asked import images_of, makers_of
from toco_lab.attribution.catalogue import ATTRIBUTIONS, methods_of
from toco_lab.attribution.controls import CONTROLS
from toco_lab.attribution.faithfulness import map_scores
from toco_lab.attribution.measured import attribution_table, measure_attributions
from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.data.loader import eval_samples
from toco_lab.method.cam import multi_scale_cam
from toco_lab.method.model import ToCo
from toco_lab.training.probe import fit_heads

FEW = {"images": 2, "steps": 4, "progress": False}


@pytest.fixture(scope="module")
def pair() -> tuple[ToCo, Config]:
    """A model of random weights, read only."""
    cfg = Config.preset("smoke")
    torch.manual_seed(0)
    return ToCo(cfg).eval(), cfg


def test_the_table_is_the_mean_of_every_image_and_class(pair):
    model, cfg = pair
    methods = ["CAM", "auxiliary CAM", "Grad-CAM", "attention rollout"]
    measured = measure_attributions(model, cfg, methods=methods, name="mine", tolerance=4, **FEW)
    expected = {name: [] for name in methods}
    samples = eval_samples(cfg, model.mean, model.std)
    for number in range(2):
        sample = samples[number]
        image = sample.image[None]
        cams = multi_scale_cam(model, image, cfg.cam_scales)
        for c in sample.image_label.nonzero().flatten().tolist():
            maps = [cams.cam[:, c], cams.cam_aux[:, c], *(ATTRIBUTIONS[name](model, image, c) for name in methods[2:])]
            scores = map_scores(model, image, torch.cat(maps), c, steps=4, on_class=sample.mask == c + 1)
            for name, one in zip(methods, scores, strict=True):
                expected[name].append((one.insertion_area, one.deletion_area, one.distance <= 4))
    table = measured.table.set_index(["method", "measure"])
    assert len(table) == 3 * len(methods)
    for name, cases in expected.items():
        for measure, values in zip(("insertion", "deletion", "pointing game"), zip(*cases, strict=True), strict=True):
            row = table.loc[name, measure]
            assert row["value"] == pytest.approx(np.mean(values), abs=1e-5)
            error = np.std(values, ddof=1) / math.sqrt(len(values))
            assert row["standard_error"] == pytest.approx(error, abs=1e-5)
            assert (row["cases"], row["images"], row["model"]) == (len(cases), 2, "mine")


def test_the_table_carries_its_protocol(pair):
    model, cfg = pair
    table = attribution_table(model, cfg.replace(eval_cam_size=64), methods=["Grad-CAM"], **FEW)
    assert table["block"].isna().all() and (table["model"] == "ToCo").all()
    shared = table[["score", "dataset", "split", "image_size", "checkpoint", "seed"]].drop_duplicates()
    assert shared.to_numpy().tolist() == [["sigmoid of the class logit", "toy", "val", "64 x 64", "", 0]]
    rows = table.set_index("measure")
    assert rows["baseline"].fillna("").tolist() == ["blur, sigma 0.1 of the shorter side", "mean colour", ""]
    assert rows["steps"].astype(object).where(rows["steps"].notna(), None).tolist() == [4, 4, None]
    assert rows.loc["pointing game", "tolerance"] == 3, "0.03 of the 96 pixels of the masks"
    assert rows["tolerance"].isna().tolist() == [True, True, False]
    cfg = cfg.replace(eval_cam_size=64)
    ends = measure_attributions(model, cfg, methods=["Grad-CAM"], **FEW).curves.set_index(["measure", "share"])["score"]
    starts = ends["insertion", 0.0], ends["deletion", 1.0]
    assert rows["baseline_score"].tolist()[:2] == pytest.approx(starts) and math.isnan(rows["baseline_score"].iloc[2])
    other = {"insertion_baseline": "mean", "deletion_baseline": "blur"}
    swapped = attribution_table(model, cfg, methods=["Grad-CAM"], **other, **FEW).set_index("measure")["baseline"]
    assert swapped["insertion"] == "mean colour" and swapped["deletion"].startswith("blur")


def test_blocks_give_a_row_each_and_cams_have_none(pair):
    model, cfg = pair
    table = attribution_table(model, cfg, methods=["CAM", "CAM of one block", "Grad-CAM"], blocks=[1, 3], **FEW)
    places = table[["method", "block"]].drop_duplicates().astype(object)
    assert places.where(places.notna(), None).to_numpy().tolist() == [
        ["CAM", None], ["CAM of one block", 1], ["CAM of one block", 3], ["Grad-CAM", 1], ["Grad-CAM", 3],
    ]  # fmt: skip
    values = table[(table["measure"] == "insertion") & (table["method"] == "Grad-CAM")]["value"]
    assert values.nunique() == 2


def test_curves_are_means_over_cases_and_carry_the_area_of_the_table(pair):
    model, cfg = pair
    measured = measure_attributions(model, cfg, methods=["CAM", "random map"], **FEW)
    curves, table = measured.curves, measured.table
    assert len(curves) == 2 * 2 * 5
    ends = curves.pivot_table(index=["method", "measure"], columns="share", values="score")
    assert ends[0.0].xs("insertion", level=1).nunique() == 1 and ends[1.0].xs("deletion", level=1).nunique() == 1
    assert (curves["low"] <= curves["high"]).all()
    areas = curves.groupby(["method", "measure"])["area"].first()
    for (method, measure), value in areas.items():
        row = table[(table["method"] == method) & (table["measure"] == measure)]["value"].item()
        assert value == pytest.approx(row, abs=1e-6)


def test_maps_that_know_no_class_are_made_once_for_an_image(pair):
    model, cfg = pair
    calls = []
    makers = makers_of(model, cfg, ["random map", "class token attention"], None)
    assert not any(maker.knows_class for maker in makers.values())

    def counting(_, image, index):
        calls.append(index)
        return torch.rand(1, *image.shape[-2:])

    measured = measure_attributions(model, cfg, methods={"own": counting}, images=3, steps=2, progress=False)
    assert len(calls) == measured.protocol["cases"] == len(measured.cases) > 3
    twice = [measure_attributions(model, cfg, methods=["random map"], **FEW).cases for _ in range(2)]
    pd.testing.assert_frame_equal(*twice)  # random, and the same every time
    areas = twice[0].groupby("image")["deletion"].first()
    assert areas.nunique() == 2, "each image has its own"


def test_methods_default_to_all_that_the_model_can_give(pair):
    model, cfg = pair
    table = attribution_table(model, cfg, images=1, steps=2, progress=False)
    assert list(dict.fromkeys(table["method"])) == ["CAM", "auxiliary CAM", *ATTRIBUTIONS, *CONTROLS]


@pytest.mark.parametrize("classes", [0, 5])
def test_a_plain_timm_model_and_images_of_ones_own(classes):
    torch.manual_seed(0)
    model = spread(
        timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **(SIZES | {"num_classes": classes}))
    )
    images = [torch.randn(3, 24, 32), torch.randn(3, 32, 24)]
    measured = measure_attributions(model, images=images, steps=3, progress=False)
    table = measured.table
    assert list(dict.fromkeys(table["method"])) == [*methods_of(model), *CONTROLS]
    assert set(table["measure"]) == {"insertion", "deletion"}, "no mask, nothing to point at"
    assert table["tolerance"].isna().all() and (table["model"] == "VisionTransformer").all()
    assert (table["dataset"] == "images given").all() and (table["images"] == 2).all()
    if classes:
        with torch.no_grad():
            tops = [str(model.eval()(image[None]).argmax().item()) for image in images]
        assert measured.cases.drop_duplicates("image")["class"].tolist() == tops
    assert measured.protocol["score"].startswith("softmax" if classes else "cosine")


@pytest.mark.parametrize("logits", [0, 5])
def test_an_own_network_is_measured_like_any_other(logits):
    torch.manual_seed(0)
    head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, logits)] if logits else []
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 8, 8), torch.nn.GELU(), torch.nn.Conv2d(8, 8, 1), *head)
    model = tl.backbones.adapt(net, layers=["0", "2"], image_size=32)
    measured = measure_attributions(model, images=[torch.randn(3, 32, 32)], steps=3, progress=False)
    table = measured.table
    own = ["Grad-CAM"] if logits else []
    assert list(dict.fromkeys(table["method"])) == [*own, "class token similarity", "class token Grad-CAM", *CONTROLS]
    assert table["value"].between(-1, 1).all() and measured.protocol["score"].startswith("soft" if logits else "cos")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["Grad-Cam"]}, "unknown method 'Grad-Cam', did you mean 'Grad-CAM'\\?"),
        ({"methods": []}, "at least one attribution"),
        ({"blocks": [9]}, "block 9 is not one of the 4 blocks"),
        ({"images": 0}, "images must be at least 1"),
        ({"tolerance": -1}, "tolerance must be a number of pixels"),
        ({"images": []}, "nothing to measure"),
        ({"cfg": None}, "a number of images needs a run, or a ToCo model and its config"),
    ],
)
def test_what_cannot_be_measured_is_refused(pair, changes, message):
    model, cfg = pair
    arguments = {"cfg": cfg} | FEW | changes
    with pytest.raises(ValueError, match=message):
        measure_attributions(model, **arguments)


def test_images_without_a_class_are_passed_over(pair, monkeypatch):
    model, cfg = pair
    samples = list(eval_samples(cfg, model.mean, model.std))
    bare = replace(samples[0], image_label=torch.zeros(6))
    monkeypatch.setattr(asked, "eval_samples", lambda *_: [bare, *samples])
    found = list(images_of(model, cfg, 2, None))
    assert [one.name for one in found] == [one.name for one in samples[:2]]
    for one, sample in zip(found, samples, strict=False):
        assert [c.index for c in one.classes] == sample.image_label.nonzero().flatten().tolist()
        assert all(torch.equal(c.where, sample.mask == c.index + 1) and c.where.any() for c in one.classes)


def test_a_run_is_read_by_its_last_checkpoint(smoke_run):
    table = tl.attribution_table(smoke_run, methods=["CAM"], **FEW)
    assert (table["model"] == "smoke").all()
    assert (table["checkpoint"] == tl.backbones.weights.weights_hash(smoke_run.checkpoints()[-1])).all()


# --- a map that is right beats those that are not ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy() -> tuple[ToCo, Config]:
    """The toy weights of the project, and a classifier that is fitted on the pooled tokens of a few scenes."""
    cfg = Config.preset("toy")
    torch.manual_seed(0)
    model = tl.initial_model(cfg).eval()
    tokens, labels = [], []
    samples = eval_samples(cfg.replace(val_images=0), model.mean, model.std, cfg.train_split)
    with torch.no_grad():
        for number in range(48):
            tokens.append(model.encode(samples[number].image[None]).patch_tokens.amax((2, 3)))
            labels.append(samples[number].image_label)
    head = fit_heads(torch.stack(tokens, 1), torch.stack(labels))
    model.classifier.weight.data = head[0, :, :, None, None]
    return model, cfg


def test_a_true_map_beats_a_random_and_an_inverted_one(toy):
    model, cfg = toy
    where = {
        (id_of(one.image), c.index): c.where.float()[None]
        for one in images_of(model, cfg, 5, None)
        for c in one.classes
    }
    methods = {
        "true": lambda _, image, index: where[id_of(image), index],
        "inverted": lambda _, image, index: 1 - where[id_of(image), index],
        "random map": makers_of(model, cfg, ["random map"], None)["random map", None].make,
    }
    table = attribution_table(model, cfg, methods=methods, images=5, steps=8, tolerance=0, progress=False)
    values = table.pivot_table(index="method", columns="measure", values="value")
    assert values.loc["true", "insertion"] > values.loc["random map", "insertion"] + 0.05
    assert values.loc["random map", "insertion"] > values.loc["inverted", "insertion"]
    assert values.loc["true", "deletion"] < values.loc["random map", "deletion"] - 0.05
    assert values.loc["random map", "deletion"] < values.loc["inverted", "deletion"]
    hits = values["pointing game"]
    assert hits["true"] == 1 and hits["inverted"] == 0 and 0 < hits["random map"] < 0.8


def id_of(image: torch.Tensor) -> float:
    """A number that tells images apart."""
    return image.double().sum().item()


def test_a_summary_in_words_names_every_setting(pair):
    model, cfg = pair
    measured = measure_attributions(model, cfg, methods=["CAM", "Grad-CAM"], blocks=[2], tolerance=5, **FEW)
    words = str(measured).splitlines()
    values = measured.table.set_index(["method", "measure"])["value"]["Grad-CAM"]
    assert words[0].split() == ["method", "block", "insertion", "deletion", "pointing", "game"]
    assert words[2].split() == ["Grad-CAM", "block", "2", *(f"{100 * value:.1f}" for value in values)]
    assert words[3].startswith(f"per cent over 2 images, {measured.protocol['cases']} cases (an image")
    assert words[4].endswith("deletion (less is better) to mean colour; 4 steps, sigmoid of the class logit")
    assert words[6] == "pointing game (more is better): maximum on the class or 5 pixels beside it"


def test_the_command_writes_table_curves_and_figure(smoke_run, tmp_path, capsys):
    folder = shutil.copytree(smoke_run.path, tmp_path / "run")
    asked = "--num-images 2 --methods CAM Grad-CAM --blocks 1 2 --steps 3".split()
    assert main(["attributions", str(folder), *asked]) == 0
    run = tl.RunDir(folder)
    table = run.read_table("attributions")
    assert table["method"].unique().tolist() == ["CAM", "Grad-CAM"] and len(table) == 3 * 3
    assert len(run.read_table("attribution_curves")) == 3 * 2 * 4
    assert (folder / "figures" / "attributions.json").stat().st_size > 1000
    assert "pointing game (more is better)" in capsys.readouterr().out
    before = run.read_table("attributions")
    assert main(["attributions", str(folder), "--methods", "Grad-Cam"]) == 2
    assert "did you mean 'Grad-CAM'" in capsys.readouterr().err
    pd.testing.assert_frame_equal(run.read_table("attributions"), before)


def test_the_figure_shows_curves_with_their_areas(pair):
    model, cfg = pair
    measured = measure_attributions(model, cfg, methods=["CAM", "Grad-CAM"], blocks=[2], **FEW)
    figure = tl.figures.faithfulness_curves(measured.curves)
    table = measured.table.set_index(["method", "measure"])["value"]
    insertion, deletion = table["CAM", "insertion"], table["CAM", "deletion"]
    assert figure.data[0].name == f"CAM ({insertion:.2f}, {deletion:.2f})"
    assert figure.data[2].name.startswith("Grad-CAM, block 2 (")
    drawn = np.trapezoid(figure.data[1].y, np.array(figure.data[1].x) / 100)
    assert drawn == pytest.approx(deletion, abs=1e-6)
    assert f"2 images, {measured.protocol['cases']} cases" in figure.layout.title.text
    two = pd.concat([measured.curves, measured.curves.assign(model="other")])
    with pytest.raises(ValueError, match="curves of one model, got those of: ToCo, other"):
        tl.figures.faithfulness_curves(two)
