"""Whole models side by side: the numbers of each, artifacts, Gram distance, colours; names of models; one command."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import timm
import torch
from helpers.folders import SAMPLES, needs_samples
from helpers.smoothing import gram
from PIL import Image

from toco_lab.backbones.activations import capture
from toco_lab.backbones.pixels import normalise
from toco_lab.backbones.weights import CheckpointError, weights_hash
from toco_lab.commands.app import main
from toco_lab.method.model import ToCo
from toco_lab.smoothing.compare import ARTIFACTS, BETWEEN_MODELS, compare_models, measure_models
from toco_lab.smoothing.named_models import names_of, open_model, state_hash
from toco_lab.smoothing.per_layer import smoothing_per_layer
from toco_lab.smoothing.token_colours import principal_colours
from toco_lab.training.checkpoints import load_run_model

DINOV2 = SAMPLES.parent / "weights" / "dinov2_vits14_fp16.safetensors"
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 2, "num_classes": 0, "dynamic_img_size": True}


def small(seed, depth=2, **changes):
    torch.manual_seed(seed)
    return timm.create_model("vit_tiny_patch16_224", depth=depth, **(SIZES | changes)).eval()


@pytest.fixture(scope="module")
def pictures():
    drawn = np.random.default_rng(0)
    return [drawn.integers(0, 256, (40, 48, 3), np.uint8).repeat(1, 0) for _ in range(3)]


@pytest.fixture(scope="module")
def compared(pictures):
    models = {"one": small(0), "deeper": small(1, 3), "coarse": small(2, patch_size=16)}
    return models, measure_models(models, pictures, image_size=32, progress=False)


def seen(model, raw):
    pixels = normalise(torch.from_numpy(raw).permute(2, 0, 1), (0.5,) * 3, (0.5,) * 3)[None]
    pixels = torch.nn.functional.interpolate(pixels, (32, 32), mode="bilinear", align_corners=False)
    return pixels, capture(model, pixels)


def test_each_model_has_the_numbers_it_has_alone(compared, pictures):
    models, found = compared
    assert timm.get_pretrained_cfg("vit_tiny_patch16_224").mean == (0.5,) * 3  # that of `seen`
    images = [seen(models["one"], raw)[0][0] for raw in pictures]
    alone = smoothing_per_layer(models["one"], images, name="one", metrics=["pairwise cosine"])
    together = found.frame[(found.frame["model"] == "one") & (found.frame["metric"] == "pairwise cosine")]
    np.testing.assert_allclose(together["value"], alone["value"], rtol=1e-6)
    table = found.table
    assert table.columns.tolist() == "model layer metric value images weights site norm variant".split()
    mean = alone[(alone["layer"] == 2) & (alone["site"] == "after block")].groupby("variant")["value"].mean()
    row = table[(table["model"] == "one") & (table["layer"] == 2) & (table["site"] == "after block")]
    row = row[row["variant"] == "absolute, off-diagonal"].iloc[0]
    assert row["value"] == pytest.approx(mean["absolute, off-diagonal"]) and row["images"] == 3


def test_artifacts_have_one_cut_for_all_images(compared, pictures):
    models, found = compared
    rows = found.frame[(found.frame["metric"] == ARTIFACTS[0]) & (found.frame["variant"] == ARTIFACTS[1])]
    assert rows.groupby("model").size().to_dict() == {"coarse": 3, "deeper": 4, "one": 3}  # blocks and the norm
    norms = [seen(models["one"], raw)[1].after_block[1][0, 1:].double().norm(dim=1) for raw in pictures]
    pooled = torch.cat(norms).numpy()
    cut = np.median(pooled) + 5 * 1.4826 * np.median(abs(pooled - np.median(pooled)))
    own = rows[(rows["model"] == "one") & (rows["site"] == "after block") & (rows["layer"] == 2)]
    assert own["value"].tolist() == [np.mean(pooled > cut)]
    assert set(found.table[found.table["variant"] == ARTIFACTS[1]]["images"]) == {3}


def test_gram_distance_is_that_of_equal_grids_alone(compared, pictures):
    models, found = compared
    assert found.gram["model"].unique().tolist() == ["one and deeper"]  # 2 x 2 tokens cannot be paired with 4 x 4
    places = found.gram.drop_duplicates(["site", "layer"])[["site", "layer"]].values.tolist()
    assert places == [["after block", 1], ["after block", 2], ["final norm", 3]]
    for site, layer in places:
        own = found.gram[(found.gram["site"] == site) & (found.gram["layer"] == layer)]
        for value, raw in zip(own["value"], pictures, strict=True):
            one, other = (seen(models[name], raw)[1] for name in ("one", "deeper"))
            pair = [s.final if site == "final norm" else s.after_block[layer - 1] for s in (one, other)]
            assert value == pytest.approx(gram(*(s[0, 1:].double().numpy() for s in pair)), rel=1e-4)
    assert BETWEEN_MODELS in set(zip(found.table["metric"], found.table["variant"], strict=True))


def test_colours_of_tokens_share_one_basis(compared, pictures):
    models, found = compared
    assert [(one.model, one.layer) for one in found.pictures[:3]] == [
        ("one", "block 1"), ("one", "block 2"), ("one", "final norm"),
    ]  # fmt: skip
    assert all(one.colours["image 0"].shape == (4, 4, 3) for one in found.pictures if one.model != "coarse")
    tokens = torch.cat([seen(models["one"], raw)[1].final[0, 1:] for raw in pictures])
    expected = principal_colours(tokens).reshape(3, 4, 4, 3).mul(255).round()
    for number, grid in enumerate(found.pictures[2].colours.values()):
        np.testing.assert_allclose(grid.astype(int), expected[number], atol=1)
    assert found.images["image 0"].shape == (32, 32, 3)


@pytest.mark.parametrize("shape", [(40, 6), (7, 20)])
def test_principal_colours_by_a_singular_value_decomposition(shape):
    tokens = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * torch.arange(1, shape[1] + 1)
    unit = (tokens / tokens.norm(dim=1, keepdim=True)).double().numpy()
    u, s, _ = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    scores = u[:, :3] * s[:3]
    scores = scores * np.where((scores**3).sum(0) < 0, -1, 1)
    low, high = np.quantile(scores, 0.02, axis=0), np.quantile(scores, 0.98, axis=0)
    np.testing.assert_allclose(principal_colours(tokens), ((scores - low) / (high - low)).clip(0, 1), atol=1e-6)
    assert principal_colours(torch.ones(5, 4)).tolist() == [[0.5] * 3] * 5
    assert principal_colours(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))[:, 2].tolist() == [0.5] * 3


@needs_samples
@pytest.mark.data
@pytest.mark.skipif(not DINOV2.is_file(), reason=f"no pretrained ViT: {DINOV2} is not there")
def test_a_real_pretrained_vit_rises_at_its_end():
    """The textbook curve, and its tokens told apart from random ones, on two photographs."""
    photographs = sorted(SAMPLES.rglob("*.jpg"))[:2]
    models = {"DINOv2": f"vit_small_patch14_dinov2={DINOV2}", "random": "vit_small_patch14_dinov2=random"}
    found = measure_models(models, photographs, metrics=["Gram distance"], progress=False)
    curve = found.table[(found.table["variant"] == "absolute, off-diagonal") & (found.table["site"] == "after block")]
    trained, drawn = (curve[curve["model"] == name].set_index("layer")["value"] for name in models)
    assert trained[12] == trained.max() > trained[5] + 0.2 and drawn.max() - drawn.min() < 0.01
    between = found.gram.groupby("layer")["value"].mean()
    assert between[12] > between[1] > 0.02


# --- models by name ---------------------------------------------------------------------------------------------------


def test_a_run_and_its_checkpoint(smoke_run, tmp_path):
    model, _ = load_run_model(smoke_run)
    checkpoint = smoke_run.checkpoints()[-1]
    copied = shutil.copy(checkpoint, tmp_path)
    for source in (smoke_run, str(smoke_run.path), copied):
        found = open_model(source)
        assert isinstance(found.model, ToCo) and found.weights == f"{checkpoint.stem} ({weights_hash(checkpoint)})"
        assert (found.mean, found.std) == (model.mean, model.std)
        assert state_hash(found.model) == state_hash(model)
    assert open_model(smoke_run).name == smoke_run.name


def test_a_model_of_timm_with_weights(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "mine.safetensors")
    found = open_model(f"vit_tiny_patch16_224={tmp_path / 'mine.safetensors'}")
    assert found.name == "vit_tiny_patch16_224" and found.mean == (0.5,) * 3
    assert found.weights == f"mine.safetensors ({weights_hash(tmp_path / 'mine.safetensors')})"
    torch.testing.assert_close(found.model.blocks[3].mlp.fc1.weight, source.blocks[3].mlp.fc1.weight)
    random = open_model("test_vit=random")
    assert random.name == "test_vit, random" and open_model("test_vit=random").weights == random.weights
    assert capture(open_model("test_resnet=random").model, torch.randn(1, 3, 64, 64)).grid == (2, 2)
    assert state_hash(source) != state_hash(found.model)


@pytest.mark.parametrize(
    "source, kind, message",
    [
        ("vit_smal_patch14_dinov2", ValueError, "no model of timm, did you mean 'vit_small_patch14_dinov2'"),
        (3, ValueError, "a model must be a module, a run, or the name of .*, got a int"),
        ("results/nothing", FileNotFoundError, "results/nothing: there is no such folder or file"),
        ("test_vit=nothing.safetensors", CheckpointError, "no weights file nothing.safetensors"),
        ("xcit_nano_12_p8_224=random", ValueError, "Xcit cannot be read: it is no plain ViT"),
        ("vit_small_patch14_dinov2.nothing=random", ValueError, "cannot be made: Invalid pretrained tag"),
    ],
)
def test_what_is_no_model(source, kind, message):
    with pytest.raises(kind, match=message):
        open_model(source)


def test_weights_that_cannot_be_downloaded(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network. More words")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(CheckpointError, match=r"'test_vit' cannot be had \(OSError: no network\).*test_vit=FILE"):
        open_model("test_vit")


def test_a_state_dict_that_names_no_model(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"does not say which model it is of: give its name too, NAME=.*a.pth"):
        open_model(tmp_path / "a.pth")


def test_names_of_models_given_twice():
    assert names_of(["a/x", "b/x", "vit=random"]) == {"a/x": "a/x", "b/x": "b/x", "vit, random": "vit=random"}
    with pytest.raises(ValueError, match="the model vit is given twice"):
        names_of(["vit", "vit"])


# --- images, the command ----------------------------------------------------------------------------------------------


def test_what_are_no_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder of images"):
        compare_models({"a": small(0)}, tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="holds no image: a file"):
        compare_models({"a": small(0)}, tmp_path)
    with pytest.raises(ValueError, match=r"image 0 must be a file or a uint8 array \(H, W, 3\), got float64"):
        compare_models({"a": small(0)}, [np.zeros((4, 4, 3))])
    with pytest.raises(ValueError, match="no image to measure"):
        compare_models({"a": small(0)}, [])
    for models in ({}, ["test_vit=random"]):
        with pytest.raises(ValueError, match=r"models must be at least one model by its name, \{name: model\}, got"):
            compare_models(models, tmp_path)


def test_the_command_writes_a_report_and_its_tables(tmp_path, pictures, smoke_run, capsys):
    folder = tmp_path / "photos" / "inner"
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"<{number}>.png")
    out = tmp_path / "out"
    line = [
        "smoothing",
        str(smoke_run.path),
        "test_vit=random",
        "--images",
        str(tmp_path / "photos"),
        "--out",
        str(out),
    ]
    assert main([*line, "--num-images", "2", "--size", "64", "--metrics", "Gram distance", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert f"{smoke_run.name}: mean |cos| between patch tokens is" in printed and str(out / "report.html") in printed
    table = pd.read_csv(out / "table.csv")
    assert set(table["model"]) == {smoke_run.name, "test_vit, random"}  # other grids: no Gram distance between them
    assert set(table["metric"]) == {"pairwise cosine", "Gram distance", "token-norm outliers"}
    protocol = json.loads((out / "protocol.json").read_text())
    assert (
        protocol["image_names"] == ["inner/<0>.png", "inner/<1>.png"]
        and protocol["image_size"] == "64 x 64, resized (bilinear)"
    )
    assert protocol["models"][smoke_run.name]["weights"].startswith("step_00000004 (")
    assert set(pd.read_csv(out / "images.csv")["image"]) == {"inner/<0>.png", "inner/<1>.png", "all images"}
    page = (out / "report.html").read_text()
    assert page.count('class="plotly-graph-div"') == 2 and page.count("<img alt=") == 2 * (1 + 3 + 3)
    assert "&lt;0&gt;.png" in page and "<0>" not in page and "No two models have equal grids" in page


def test_the_command_without_images_is_one_line(tmp_path, capsys):
    assert main(["smoothing", "test_vit=random", "--images", str(tmp_path / "nothing")]) == 2
    assert "error:" in (said := capsys.readouterr().err) and "no such folder of images" in said
    assert main(["smoothing", "--images", str(tmp_path)]) == 2
    assert "needs at least one MODEL" in capsys.readouterr().err
