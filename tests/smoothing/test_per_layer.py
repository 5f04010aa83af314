"""Over-smoothing per layer: one pass through timm models, rows that name everything, runs and their tables."""

import copy

import numpy as np
import pytest
import timm
import torch
from helpers.smoothing import tokens_by_hand

from toco_lab.backbones.anti_smoothing import add_attn_scale
from toco_lab.config import Config
from toco_lab.data.loader import eval_samples
from toco_lab.method.model import ToCo
from toco_lab.runs.run_dir import RunDir
from toco_lab.smoothing import layers
from toco_lab.smoothing.catalogue import METRICS
from toco_lab.smoothing.formulas import RankMe, token_similarity
from toco_lab.smoothing.of_runs import smoothing_of_run
from toco_lab.smoothing.per_layer import PAIR_COSINES, SITES, metric_names, smoothing_per_layer
from toco_lab.training.checkpoints import save_checkpoint
from toco_lab.training.learner import Learner

KEY = ("pairwise cosine", "absolute, off-diagonal")


def of_key(frame, key=KEY):
    return frame[(frame["metric"] == key[0]) & (frame["variant"] == key[1])]


def test_all_metrics_in_one_pass_per_image_and_rows_that_name_everything(vit):
    images, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 2, (2, 32, 32))
    calls = []
    handle = vit.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    frame = smoothing_per_layer(vit, images, labels, name="tiny", weights="random", image_names=["a", "b"])
    handle.remove()
    assert len(calls) == 2
    found = set(zip(frame["metric"], frame["variant"], strict=True))
    rare = {key for key in METRICS if "outliers" in key[0]}  # random tokens have none
    assert found | rare == {*METRICS, ("RankMe", "tokens of all images pooled")} | rare
    assert set(frame["model"]) == {"tiny"} and set(frame["weights"]) == {"random"}
    assert set(frame["image"]) == {"a", "b", "all images"}
    assert set(frame.loc[frame["image"] == "all images", "metric"]) == {"RankMe"}
    sets = frame.groupby("token_set")["tokens"].unique().map(list).to_dict()
    assert sets == {"patch tokens": [16, 32], "all tokens": [17], "class and patch tokens": [16]}  # 32: RankMe's pool
    norms = frame.groupby("site")["norm"].unique().map(list).to_dict()
    assert norms == {"after block": ["none"], "final norm": ["LayerNorm"], "attention": ["none"]}
    assert sorted(frame.loc[frame["site"] == "after block", "layer"].unique()) == [1, 2, 3]
    assert set(frame.loc[frame["site"] == "final norm", "layer"]) == {3}
    of_attention = set(frame.loc[frame["site"] == "attention", "metric"])
    assert of_attention == {
        "attention spectrum", "attention entropy", "mean attention distance", "cross-layer attention similarity",
    }  # fmt: skip
    assert frame["value"].notna().all()


def test_values_are_those_of_the_sites(vit):
    image = torch.randn(3, 32, 32)
    frame = smoothing_per_layer(vit, [image], name="tiny", metrics=["pairwise cosine"], sites=SITES)
    values = of_key(frame).set_index(["site", "layer"])["value"]
    sites = tokens_by_hand(vit, image)
    assert set(values.index) == set(sites)
    for (site, layer), tokens in sites.items():
        expected = token_similarity(tokens[:, 1:].transpose(1, 2).reshape(1, 24, 4, 4)).item()
        assert values[site, layer] == pytest.approx(expected, rel=1e-4)


def test_rank_me_pools_the_tokens_of_all_images(vit):
    images = torch.randn(3, 3, 32, 32)
    frame = smoothing_per_layer(vit, images, name="t", metrics=["RankMe"], sites=["final norm"])
    pooled = RankMe()
    pooled.update(torch.cat([tokens_by_hand(vit, image)["final norm", 3][:, 1:] for image in images]))
    assert len(frame) == 1 and frame["tokens"].item() == 3 * 16
    other = smoothing_per_layer(vit, [torch.randn(3, 32, 32), torch.randn(3, 16, 40)], name="t", metrics=["RankMe"])
    assert set(other["tokens"]) == {16 + 10} and len(other) == 4  # sizes may differ: one pool per layer all the same
    assert frame["value"].item() == pytest.approx(pooled.compute(), rel=1e-4)


@pytest.mark.parametrize("name, prefix", [("deit_tiny_distilled_patch16_224", 2), ("vit_small_patch14_reg4_dinov2", 5)])
def test_all_metrics_with_registers_and_distillation_token(name, prefix):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
    model = timm.create_model(name, dynamic_img_size=True, **sizes)
    assert model.num_prefix_tokens == prefix
    frame = smoothing_per_layer(model, torch.randn(1, 3, 32, 48), name="t", sites=SITES)
    sets = frame[frame["metric"] != "RankMe"].groupby("token_set")["tokens"].unique().map(list).to_dict()
    assert sets == {"patch tokens": [24], "all tokens": [24 + prefix], "class and patch tokens": [24]}
    assert set(metric_names()) - set(frame["metric"]) <= {
        "positive cosine", "negative cosine", "cosine gap", "PTC loss", "neighbour similarity of outliers",
    }  # fmt: skip


def test_images_of_any_size_and_one_site(vit):
    images = iter([torch.randn(3, 40, 55), torch.randn(3, 16, 33)])
    frame = of_key(smoothing_per_layer(vit, images, name="t", sites=["final norm"], metrics=PAIR_COSINES))
    assert frame["tokens"].tolist() == [5 * 6, 2 * 4]
    with pytest.raises(ValueError, match="smaller than one patch of 8"):
        smoothing_per_layer(vit, [torch.randn(3, 7, 20)], name="t")


def test_misspelt_names_are_refused_before_anything_runs(vit):
    with pytest.raises(ValueError, match="after block, final norm"):
        smoothing_per_layer(vit, [], name="t", sites=["block"])
    with pytest.raises(ValueError, match="unknown metric cosines; there are: pairwise cosine"):
        smoothing_per_layer(vit, [], name="t", metrics=["cosines"])
    with pytest.raises(ValueError, match="no plain ViT"):
        smoothing_per_layer(torch.nn.Linear(1, 1), [], name="t")


def test_what_can_not_be_measured_is_said(vit):
    image = torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match="'attention entropy' is about a block"):
        smoothing_per_layer(vit, image, name="t", metrics=["attention entropy"], sites=["final norm"])
    with pytest.raises(ValueError, match="'CKA' is about a block"):
        smoothing_per_layer(vit, image, name="t", metrics=["CKA"], sites=["patch embedding"])
    with pytest.raises(ValueError, match="shorter than"):
        smoothing_per_layer(vit, torch.randn(3, 3, 32, 32), torch.zeros(2, 32, 32).long(), name="t")
    with pytest.raises(ValueError, match=r"label \(32, 16\) and image \(16, 32\) differ"):
        smoothing_per_layer(vit, torch.randn(1, 3, 16, 32), torch.zeros(1, 32, 16).long(), name="t")


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_medium_patch16_gap_240"])
def test_models_without_class_token_or_final_norm(name):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
    model = timm.create_model(name, dynamic_img_size=True, **sizes)
    assert model.num_prefix_tokens == 0
    frame = smoothing_per_layer(model, torch.randn(2, 3, 32, 32), name="t")
    assert "class-patch cosine" not in set(frame["metric"]) and "attention entropy" in set(frame["metric"])
    assert ("final norm" in set(frame["site"])) == (not isinstance(model.norm, torch.nn.Identity))
    if isinstance(model.norm, torch.nn.Identity):
        with pytest.raises(ValueError, match="no norm at the end"):
            smoothing_per_layer(model, torch.randn(1, 3, 32, 32), name="t", sites=["final norm"])


def test_half_precision_gives_nearly_the_same(vit):
    image = torch.randn(1, 3, 32, 32)
    half = copy.deepcopy(vit).bfloat16()
    columns = ["site", "layer", "metric", "variant"]
    exact = smoothing_per_layer(vit, image, name="t").set_index(columns)["value"]
    rough = smoothing_per_layer(half, image, name="t").set_index(columns)["value"]
    for key in (KEY, ("attention entropy", "over log T"), ("attention spectrum", "share off frequency 0, all tokens")):
        chosen = exact.xs(key, level=("metric", "variant"))
        np.testing.assert_allclose(rough.xs(key, level=("metric", "variant")), chosen, rtol=0.05, atol=1e-3)


def test_scaled_attention_is_no_distribution(vit):
    """AttnScale makes entries negative: what wants a distribution has no value then, and no infinity."""
    model = add_attn_scale(copy.deepcopy(vit))
    for block in model.blocks:
        block.attn.qkv.weight.data *= 30
        torch.nn.init.constant_(block.attn.attn_scale.omega, 0.5)
    frame = smoothing_per_layer(model, torch.randn(1, 3, 32, 32), name="t")
    assert frame["value"].abs().max() < np.inf
    assert not {"attention entropy", "mean attention distance"} & set(frame["metric"])
    assert "attention-weighted" not in set(frame["variant"])
    assert "cross-layer attention similarity" in set(frame["metric"])


def test_metrics_of_labels_only_with_labels_and_nothing_undefined(vit):
    images = torch.randn(1, 3, 32, 32)
    without = smoothing_per_layer(vit, images, name="t", metrics=PAIR_COSINES)
    assert set(without["metric"]) == {"pairwise cosine"}
    one_class = smoothing_per_layer(vit, images, torch.zeros(1, 32, 32).long(), name="t", metrics=PAIR_COSINES)
    assert set(one_class["metric"]) == {"pairwise cosine", "positive cosine"}  # no negative pair: no row


def test_no_attention_is_kept_where_no_metric_wants_it(vit, monkeypatch):
    asked = []
    real = layers.capture
    monkeypatch.setattr(layers, "capture", lambda *a, **k: asked.append(k["attention"]) or real(*a, **k))
    smoothing_per_layer(vit, torch.randn(1, 3, 32, 32), name="t", metrics=["stable rank"])
    smoothing_per_layer(vit, torch.randn(1, 3, 32, 32), name="t", metrics=["attention entropy"])
    assert asked == [False, True]


@pytest.mark.parametrize("eval_cam_size, tokens", [(0, 12 * 12), (64, 8 * 8)])
def test_smoothing_of_run_reads_the_checkpoint_and_writes_the_table(tmp_path, eval_cam_size, tokens):
    cfg = Config.preset("smoke").replace(eval_cam_size=eval_cam_size)
    run, model = RunDir.create(cfg, tmp_path), ToCo(cfg)
    save_checkpoint(run.checkpoint_path(7), Learner.of(model, cfg).state(), 7, cfg)
    frame = smoothing_of_run(run, 2, device="cpu", progress=False)
    assert frame["image"].nunique() == 2
    assert set(frame["model"]) == {run.name}
    assert frame["weights"].str.match(r"step_00000007 \([0-9a-f]{12}\)$").all()
    assert set(frame["tokens"]) == {tokens}
    assert set(frame["metric"]) == set(PAIR_COSINES)
    sample = eval_samples(cfg, model.mean, model.std)[0]
    if eval_cam_size == 0:  # the checkpoint's weights, not fresh ones
        expected = smoothing_per_layer(model, [sample.image], [sample.mask], name="x", metrics=PAIR_COSINES)["value"]
        np.testing.assert_allclose(frame.loc[frame["image"] == sample.name, "value"], expected, rtol=1e-5)
    assert run.read_table("smoothing")["value"].tolist() == frame["value"].tolist()


def test_an_image_that_would_be_read_as_noise_is_named(vit):
    good = torch.randn(3, 32, 32)
    bad = good.clone()
    bad[0, 3, 4] = torch.nan
    with pytest.raises(ValueError, match="image 'b' holds 1 numbers that are NaN or infinite"):
        smoothing_per_layer(vit, [good, bad], name="t", image_names=["a", "b"])
    with pytest.raises(ValueError, match=r"image '0' is of torch.uint8, not normalised: give floats"):
        smoothing_per_layer(vit, [(good * 9).byte()], name="t")
    with pytest.raises(ValueError, match="image 0 holds 1 numbers"):
        layers.layer_similarity(vit, [bad])
    with pytest.warns(UserWarning, match="image '0' has numbers up to 255: is it normalised"):
        smoothing_per_layer(vit, [torch.full((3, 32, 32), 255.0)], name="t", metrics=["pairwise cosine"])


def test_a_table_without_rows_is_said(vit):
    with pytest.raises(ValueError, match="no images to measure"):
        smoothing_per_layer(vit, [], name="t")
    with pytest.warns(UserWarning, match="no row: negative cosine has no value for any image"):
        assert smoothing_per_layer(vit, torch.randn(1, 3, 32, 32), name="t", metrics=["negative cosine"]).empty
    broken = copy.deepcopy(vit)
    broken.blocks[1].norm1.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="VisionTransformer gives NaN or infinite tokens for image '0', after block 2"):
        smoothing_per_layer(broken, torch.randn(1, 3, 32, 32), name="t")
