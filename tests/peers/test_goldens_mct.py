"""MCTformer-V2 and MCTformer+ against arrays that the authors' code gave."""

import pytest
import torch
from helpers.baseline_goldens import assert_near, config_of, load_golden, needed, part
from torch import Tensor

from toco_lab.backbones.activations import attention_maps
from toco_lab.method.batch import Batch
from toco_lab.peers.affinity import patch_affinity, spread
from toco_lab.peers.mct import MCTformer
from toco_lab.peers.mct_maps import class_attention, class_contrast, class_logits, fuse, ranked_pooling, summed_map

pytestmark = needed


def loaded(name: str, method: str, **options) -> tuple[dict[str, Tensor], dict, MCTformer]:
    """A file, what it says of itself, and a model with its weights."""
    golden, meta = load_golden(name)
    model = MCTformer(config_of(meta, method).replace(mct_layers=meta["n_layers"], **options))
    weights = part(golden, "w/")
    model.classifier.load_state_dict(part(weights, "head."))
    encoder = {name: value for name, value in weights.items() if not name.startswith(("head.", "norm.", "pos_embed"))}
    encoder["pos_embed"] = positions(weights)
    model.encoder.load_state_dict(encoder)
    return golden, meta, model.eval()


def positions(arrays: dict[str, Tensor]) -> Tensor:
    """Class and patch positions in one tensor, as the encoder has them; MCTformer+ has two."""
    if "pos_embed_cls" in arrays:
        return torch.cat([arrays["pos_embed_cls"], arrays["pos_embed_pat"]], dim=1)
    return arrays["pos_embed"]


@pytest.fixture(scope="module")
def v2():
    return loaded("mct_v2", "mct")


@pytest.fixture(scope="module")
def plus():
    meta = load_golden("mct_plus")[1]
    options = {"mct_contrast_layers": "num_cct", "mct_decay": "decay", "mct_contrast_weight": "loss_weight"}
    return loaded("mct_plus", "mct_plus", **{field: meta[key] for field, key in options.items()})


def batch_of(golden: dict[str, Tensor]) -> Batch:
    """The images and labels of a file; MCTformer reads nothing else of a batch."""
    image = golden["input"]
    box = torch.tensor([[0, image.shape[-2], 0, image.shape[-1]]]).expand(len(image), -1)
    return Batch(names=[], image=image, view2=image, local_source=image, image_label=golden["target"], valid_box=box)


def assert_gradients(golden: dict[str, Tensor], model: MCTformer, loss: Tensor) -> None:
    model.encoder.zero_grad()
    named = dict(model.encoder.named_parameters()) | {f"head.{n}": p for n, p in model.classifier.named_parameters()}
    expected = part(golden, "grad/")
    at = {name: value for name, value in expected.items() if not name.startswith("pos_embed")}
    at["pos_embed"] = positions(expected)
    found = torch.autograd.grad(loss, [named[name] for name in at])
    for (name, value), gradient in zip(at.items(), found, strict=True):
        assert value.abs().max() > 0
        assert_near(gradient, value, 5e-5, name)


def test_v2_tokens_and_logits(v2):
    golden, _, model = v2
    features = model.encode(golden["input"])
    assert_near(features.tokens.after_block[-1], golden["class_tokens"], 1e-5, "class_tokens")
    assert_near(features.tokens.patches, golden["patch_tokens"], 1e-5, "patch_tokens")
    assert_near(features.tokens.head_map, golden["head_map"], 1e-5, "head_map")
    assert_near(model(golden["input"]).logits, golden["cls_logits"], 1e-5, "cls_logits")
    assert_near(model.patch_logits(features.tokens), golden["patch_logits"], 1e-5, "patch_logits")


@pytest.mark.parametrize("name", ["v2", "plus"])
def test_maps(name, request):
    golden, _, model = request.getfixturevalue(name)
    maps = model.maps(golden["input"])
    assert_near(maps.attention, golden["mct_attention"], 1e-5, "mct_attention")
    assert_near(maps.patch_cam, golden["patch_cam"], 1e-5, "patch_cam")
    assert_near(maps.fused, golden["fused"], 1e-5, "fused")
    assert_near(maps.affinity, golden["patch_affinity"], 1e-5, "patch_affinity")
    assert_near(maps.refined, golden["refined"], 1e-5, "refined")
    cam, cam_aux = model.raw_maps(golden["input"])
    assert torch.equal(cam, maps.refined) and torch.equal(cam_aux, maps.fused)


def test_v2_functions_alone(v2):
    golden, meta, model = v2
    classes, grid = meta["num_classes"], tuple(golden["fused"].shape[-2:])
    with attention_maps(model) as seen, torch.no_grad():
        model.tokens(golden["input"])
    assert_near(torch.stack(seen), golden["attn"], 1e-5, "attn")
    assert_near(patch_affinity(golden["attn"], classes), golden["patch_affinity"], 1e-5, "patch_affinity")
    rows = [one.mean(1)[:, :classes, classes:] for one in golden["attn"]]
    attention = class_attention(rows, grid, last=meta["n_layers"], mean=False)
    assert_near(attention, golden["mct_attention"], 1e-5, "mct_attention")
    assert_near(fuse(attention, golden["patch_cam"], geometric=False), golden["fused"], 1e-5, "fused")
    assert_near(spread(golden["fused"], golden["patch_affinity"]), golden["refined"], 1e-5, "refined")
    assert_near(class_logits(golden["class_tokens"]), golden["cls_logits"], 1e-5, "cls_logits")


def test_v2_on_another_grid(v2):
    golden, meta, model = v2
    image, grid = golden["other/input"], [side // meta["patch_size"] for side in golden["other/input"].shape[-2:]]
    with torch.no_grad():
        found = model.encoder._pos_embed(torch.zeros(1, *grid, meta["embed_dim"]))
        found[:, : meta["num_classes"]] -= model.encoder.cls_token
    assert_near(found, golden["other/pos"], 1e-6, "other/pos")
    maps = model.maps(image)
    assert_near(maps.fused, golden["other/fused"], 1e-5, "other/fused")
    assert_near(maps.refined, golden["other/refined"], 1e-5, "other/refined")
    assert_near(model(image).logits, golden["other/cls_logits"], 1e-5, "other/cls_logits")


@pytest.mark.parametrize("name", ["v2", "plus"])
def test_multi_scale_inference(name, request):
    golden, _, model = request.getfixturevalue(name)
    images = [golden["input"][:1], *(golden[key] for key in sorted(golden) if key.startswith("scales/image"))]
    maps = [model.maps(one).refined for image in images for one in (image, image.flip(-1))]
    found = summed_map(maps, golden["input"].shape[-2:], golden["target"][:1])[0]
    assert (found - golden["scales/map"]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["v2", "plus"])
def test_losses_and_gradients(name, request):
    golden, _, model = request.getfixturevalue(name)
    model.encoder.pos_embed.requires_grad_(True)  # frozen here; the authors train it
    terms = model.losses(batch_of(golden), model._cfg, 0).terms
    found = [terms.cls, terms.patch_cls] if name == "v2" else [terms.cls, terms.cct, terms.patch_cls]
    assert_near(torch.stack(found), golden["loss_terms"], 1e-5, "loss_terms")
    assert_near(terms.total, golden["loss"], 1e-5, "loss")
    assert_gradients(golden, model, terms.total)
    model.encoder.pos_embed.requires_grad_(False)


def test_plus_logits_and_functions_alone(plus):
    golden, meta, model = plus
    tokens = model.tokens(golden["input"], blocks=meta["depth"])
    assert_near(tokens.after_block, golden["class_embeddings"], 1e-5, "class_embeddings")
    assert_near(class_logits(tokens.after_block[-1]), golden["cls_logits"], 1e-5, "cls_logits")
    assert_near(ranked_pooling(tokens.head_map, meta["decay"]), golden["patch_logits"], 1e-5, "patch_logits")
    assert_near(model(golden["input"]).logits, golden["logits"], 1e-5, "logits")
    contrast = class_contrast(golden["class_embeddings"][-meta["num_cct"] :], golden["target"])
    assert_near(contrast, golden["loss_terms"][1], 1e-5, "contrast")
