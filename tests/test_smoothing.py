"""Over-smoothing metrics: identities, a slow oracle written from the formulas, and one pass through timm models."""

import math

import numpy as np
import pytest
import timm
import torch

from toco_lab.checkpoints import save_checkpoint
from toco_lab.config import Config
from toco_lab.data import eval_samples
from toco_lab.model import ToCo
from toco_lab.runs import RunDir
from toco_lab.smoothing import (
    METRICS,
    majority_label,
    pair_cosine,
    similarity_per_layer,
    smoothing_of_run,
    token_similarity,
    tokens_per_layer,
)


def slow_pairs(tokens, label=None):
    """|cos| of all ordered pairs i != j of one image (D, h, w): list of (value, same label or None)."""
    rows = tokens.flatten(1).T.double().numpy()
    label = None if label is None else label.flatten().tolist()
    pairs = []
    for i, x in enumerate(rows):
        for j, y in enumerate(rows):
            if i == j or (label and 255 in (label[i], label[j])):
                continue
            value = abs(float(x @ y)) / (np.linalg.norm(x) * np.linalg.norm(y))
            pairs.append((value, None if label is None else label[i] == label[j]))
    return pairs


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
    return timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **sizes)


# --- the numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (1, 2, 1, 2), (3, 8, 4, 4)])
def test_token_similarity_equals_the_double_loop(shape):
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = [np.mean([value for value, _ in slow_pairs(image)]) for image in tokens]
    np.testing.assert_allclose(token_similarity(tokens).numpy(), expected, rtol=1e-5)


def test_pair_cosine_equals_the_double_loop():
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(3, 6, 4, 5, generator=generator)
    label = torch.randint(0, 3, (3, 4, 5), generator=generator)
    label[0, 0], label[1, :, 2] = 255, 255
    result = pair_cosine(tokens, label)
    for image in range(3):
        pairs = slow_pairs(tokens[image], label[image])
        positive = np.mean([value for value, same in pairs if same])
        negative = np.mean([value for value, same in pairs if not same])
        assert result.positive[image].item() == pytest.approx(positive, rel=1e-5)
        assert result.negative[image].item() == pytest.approx(negative, rel=1e-5)
        assert result.gap[image].item() == pytest.approx(positive - negative, abs=1e-6)


def test_identities():
    constant = torch.randn(1, 7, 1, 1).expand(1, 7, 3, 3)
    assert token_similarity(constant).item() == pytest.approx(1, abs=1e-6)
    assert token_similarity(-constant).item() <= 1
    orthonormal = torch.linalg.qr(torch.randn(9, 9)).Q.reshape(1, 9, 3, 3)
    assert token_similarity(orthonormal).item() == pytest.approx(0, abs=1e-6)


def test_sign_and_scale_of_a_token_do_not_matter():
    tokens = torch.randn(1, 4, 2, 3)
    scaled = tokens * torch.tensor([[-3.0, 1, 0.1], [1e3, -1, 2]])
    torch.testing.assert_close(token_similarity(scaled), token_similarity(tokens))


def test_equal_and_orthogonal_tokens_are_told_apart():
    label = torch.tensor([[[0, 0], [1, 1]]])
    equal = pair_cosine(torch.ones(1, 4, 2, 2), label)
    orthogonal = pair_cosine(torch.eye(4).reshape(1, 4, 2, 2), label)
    assert (equal.positive.item(), equal.negative.item()) == pytest.approx((1, 1))
    assert (orthogonal.positive.item(), orthogonal.negative.item()) == pytest.approx((0, 0))


def test_undefined_values_are_nan():
    assert math.isnan(token_similarity(torch.randn(1, 4, 1, 1)).item())
    one_class = pair_cosine(torch.randn(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long))
    assert math.isnan(one_class.negative.item())
    assert not math.isnan(one_class.positive.item())
    assert math.isnan(pair_cosine(torch.randn(1, 4, 2, 2), torch.full((1, 2, 2), 255)).positive.item())


def test_zero_tokens_have_cosine_zero():
    tokens = torch.ones(1, 3, 1, 3)
    tokens[..., 0] = 0  # 3 pairs, one of them of cosine 1
    assert token_similarity(tokens).item() == pytest.approx(1 / 3)


def test_pair_cosine_wants_labels_on_the_token_grid():
    with pytest.raises(ValueError, match=r"\(1, 8, 8\).*\(1, 4, 2, 2\)"):
        pair_cosine(torch.randn(1, 4, 2, 2), torch.zeros(1, 8, 8, dtype=torch.long))


def test_majority_label():
    mask = torch.zeros(1, 5, 4, dtype=torch.long)
    mask[0, :2, 2:] = torch.tensor([[3, 3], [3, 255]])
    mask[0, 2:4, :2] = torch.tensor([[255, 255], [255, 1]])
    mask[0, 2:4, 2:] = torch.tensor([[7, 7], [2, 2]])  # a tie
    mask[0, 4] = 9  # fills no patch
    assert majority_label(mask, 2).tolist() == [[[0, 3], [255, 2]]]


# --- models -----------------------------------------------------------------------------------------


def test_one_pass_per_image_and_rows_that_name_everything(vit):
    images, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 2, (2, 32, 32))
    calls = []
    handle = vit.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    frame = similarity_per_layer(vit, images, labels, name="tiny", weights="random", image_names=["a", "b"])
    handle.remove()
    assert len(calls) == 2
    assert len(frame) == 2 * (3 + 1) * len(METRICS)
    assert set(frame["model"]) == {"tiny"} and set(frame["weights"]) == {"random"}
    assert set(frame["image"]) == {"a", "b"}
    assert set(frame["tokens"]) == {16}
    assert frame.groupby("site")["norm"].unique().map(list).to_dict() == {
        "after block": ["none"],
        "final norm": ["LayerNorm"],
    }
    assert sorted(frame.loc[frame["site"] == "after block", "layer"].unique()) == [1, 2, 3]
    assert set(frame.loc[frame["site"] == "final norm", "layer"]) == {3}
    assert frame["value"].between(0, 1).all()


def test_values_are_those_of_the_residual_stream_and_of_the_final_norm(vit):
    image = torch.randn(3, 32, 32)
    frame = similarity_per_layer(vit, [image], name="tiny").set_index(["site", "layer"])["value"]
    with torch.no_grad():  # the same forward pass by hand
        tokens, sites = vit.eval().norm_pre(vit._pos_embed(vit.patch_embed(image[None]))), {}
        for layer, block in enumerate(vit.blocks, start=1):
            tokens = sites["after block", layer] = block(tokens)
        sites["final norm", 3] = vit.norm(tokens)
    assert set(frame.index) == set(sites)
    for (site, layer), tokens in sites.items():
        expected = np.mean([value for value, _ in slow_pairs(tokens[0, 1:].T.reshape(24, 4, 4))])
        assert frame[site, layer] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name, prefix", [("deit_tiny_distilled_patch16_224", 2), ("vit_small_patch14_reg4_dinov2", 5)])
def test_prefix_tokens_are_left_out_whatever_their_number(name, prefix):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
    model = timm.create_model(name, dynamic_img_size=True, **sizes)
    assert model.num_prefix_tokens == prefix
    for _, _, _, tokens in tokens_per_layer(model, torch.randn(3, 32, 48)):
        assert tokens.shape == (1, 4 * 6, 16)


def test_images_of_any_size_and_one_site(vit):
    images = iter([torch.randn(3, 40, 55), torch.randn(3, 16, 33)])
    frame = similarity_per_layer(vit, images, name="t", site="final norm")
    assert frame["tokens"].tolist() == [5 * 6, 2 * 4]
    assert set(frame["metric"]) == {"pairwise cosine"}  # no labels, no pairs
    with pytest.raises(ValueError, match="smaller than one patch of 8"):
        similarity_per_layer(vit, [torch.randn(3, 7, 20)], name="t")
    with pytest.raises(ValueError, match="'block'"):
        similarity_per_layer(vit, [], name="t", site="block")


def test_modes_are_restored_and_no_gradient_is_kept(vit):
    wrapper = torch.nn.Module()
    wrapper.encoder = vit
    vit.train()
    vit.blocks[1].eval()
    before = [part.training for part in vit.modules()]
    similarity_per_layer(wrapper, torch.randn(1, 3, 32, 32), name="t")
    assert [part.training for part in vit.modules()] == before
    vit.eval()
    assert not next(tokens_per_layer(vit, torch.randn(3, 32, 32)))[3].requires_grad


@pytest.mark.parametrize("eval_cam_size, tokens", [(0, 12 * 12), (64, 8 * 8)])
def test_smoothing_of_run_reads_the_checkpoint_and_writes_the_table(tmp_path, eval_cam_size, tokens):
    cfg = Config.preset("smoke").replace(eval_cam_size=eval_cam_size)
    run, model = RunDir.create(cfg, tmp_path), ToCo(cfg)
    save_checkpoint(run.checkpoint_path(7), model, torch.optim.SGD(model.parameters(), lr=1.0), 7, cfg)
    frame = smoothing_of_run(run, 2, device="cpu", progress=False)
    assert frame["image"].nunique() == 2
    assert set(frame["model"]) == {run.name}
    assert frame["weights"].str.match(r"step_00000007 \([0-9a-f]{12}\)$").all()
    assert set(frame["tokens"]) == {tokens}
    assert set(frame["metric"]) == {"pairwise cosine", "positive cosine", "negative cosine"}
    sample = eval_samples(cfg, model.mean, model.std)[0]
    if eval_cam_size == 0:  # the checkpoint's weights, not fresh ones
        expected = similarity_per_layer(model, [sample.image], [sample.mask], name="x")["value"]
        np.testing.assert_allclose(frame.loc[frame["image"] == sample.name, "value"], expected, rtol=1e-5)
    assert run.read_table("similarity")["value"].tolist() == frame["value"].tolist()
