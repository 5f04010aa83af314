"""WeakTr's head weights against an oracle written from the equations: whole attention, one head after the other."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.backbones.activations import attention_maps
from toco_lab.config import Config
from toco_lab.experiment import open_run, train
from toco_lab.method.batch import Batch
from toco_lab.peers.mct import MCTformer
from toco_lab.training.checkpoints import load_run_model

SMOKE = Config.preset("smoke").replace(method="mct", mct_head_weights=True)


@pytest.fixture
def model() -> MCTformer:
    torch.manual_seed(0)
    model = MCTformer(SMOKE)
    with torch.no_grad():
        for parameter in (*model.encoder.parameters(), *model.head_weights.parameters()):
            parameter.add_(0.3 * torch.randn_like(parameter))  # heads and images that differ
    return model


def batch(seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(2, 3, 40, 48, generator=generator)
    label = torch.tensor([[1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]]).float()
    return Batch([], image, image, image, label, torch.tensor([[0, 40, 0, 48]] * 2))


def heads_of(model: MCTformer, image: Tensor) -> tuple[Tensor, Tensor]:
    """Attention (B, K, T, T) and features (B, K, T, d) of all heads; the features are attention times values."""
    seen: list[Tensor] = []
    hooks = [b.attn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for b in model.encoder.blocks]
    with torch.no_grad(), attention_maps(model) as attention:
        model.tokens(image)
    for hook in hooks:
        hook.remove()
    features = []
    for block, tokens, looks in zip(model.encoder.blocks, seen, attention, strict=True):
        width = tokens.shape[2]
        values = F.linear(tokens, block.attn.qkv.weight[2 * width :], block.attn.qkv.bias[2 * width :])
        features.append(looks @ values.unflatten(2, (looks.shape[1], -1)).transpose(1, 2))
    return torch.cat(attention, 1), torch.cat(features, 1).detach()


def weights_by_hand(model: MCTformer, features: Tensor) -> Tensor:
    """(B, K): pool over tokens, d -> d/8 -> 1 per head, K -> K/4 -> K over heads, sigmoid."""
    (first, second), (third, _, fourth) = model.head_weights.of_features, model.head_weights.of_heads
    rows = []
    for image in features:
        scores = torch.stack([second(first(head.mean(0)))[0] for head in image])
        rows.append(torch.sigmoid(fourth.weight @ torch.clamp(third.weight @ scores, min=0)))
    return torch.stack(rows)


def maps_by_hand(model: MCTformer, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of class tokens, fused and refined map, (B, C, N), image by image."""
    looks, features = heads_of(model, image)
    weights, classes = weights_by_hand(model, features), model.num_classes
    patch_cam = model.tokens(image).head_map.detach().clamp(min=0).flatten(2)
    found = []
    for b in range(len(image)):
        mean = sum(weights[b, k] * looks[b, k] for k in range(looks.shape[1])) / looks.shape[1]
        fused = mean[:classes, classes:] * patch_cam[b]
        refined = torch.stack([mean[classes:, classes:] @ one for one in fused])
        found.append((mean[:classes, classes:], fused, refined))
    return tuple(torch.stack(maps) for maps in zip(*found, strict=True))


def test_maps_meet_the_oracle(model):
    image = batch().image
    attention, fused, refined = maps_by_hand(model, image)
    maps = model.maps(image)
    torch.testing.assert_close(maps.attention.flatten(2), attention.detach())
    torch.testing.assert_close(maps.fused.flatten(2), fused.detach())
    torch.testing.assert_close(maps.refined.flatten(2), refined.detach())
    assert (attention[0] - attention[1]).abs().max() > 1e-4


def test_loss_and_gradient_meet_the_oracle_and_teach_the_weights_alone(model):
    given = batch()
    terms = model.losses(given, SMOKE.replace(mct_map_weight=0.5), 0).terms
    expected = F.multilabel_soft_margin_loss(maps_by_hand(model, given.image)[2].mean(2), given.image_label)
    torch.testing.assert_close(terms.map_cls, expected)
    torch.testing.assert_close(terms.total, terms.cls + terms.patch_cls + 0.5 * expected)
    own = list(model.head_weights.parameters())
    pairs = zip(torch.autograd.grad(terms.map_cls, own), torch.autograd.grad(expected, own), strict=True)
    for found, wanted in pairs:
        assert wanted.abs().max() > 0
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-9)
    others = [*model.encoder.parameters(), *model.classifier.parameters()]
    others = [parameter for parameter in others if parameter.requires_grad]
    assert all(grad is None for grad in torch.autograd.grad(terms.map_cls, others, allow_unused=True))


def test_a_run_learns_them(tmp_path):
    run = open_run(SMOKE, tmp_path)
    train(run, progress=False)
    assert run.metrics()["map_cls_loss"].gt(0).all()
    torch.manual_seed(SMOKE.seed)
    begun, now = MCTformer(SMOKE).head_weights, load_run_model(run)[0].head_weights
    assert all(not torch.equal(a, b) for a, b in zip(begun.parameters(), now.parameters(), strict=True))


def test_options_that_do_not_go_with_them_are_refused():
    with pytest.raises(ValueError, match=r"mct_layers 2 has no effect with mct_head_weights"):
        SMOKE.replace(mct_layers=2)
    with pytest.raises(ValueError, match=r"mct_map_weight 0.5 has no effect.*set mct_head_weights"):
        SMOKE.replace(mct_head_weights=False, mct_map_weight=0.5)
    with pytest.raises(ValueError, match=r"checkpoint_blocks.*leave it False"):
        SMOKE.replace(checkpoint_blocks=True)
    with pytest.raises(ValueError, match=r"mct_head_weights True has no effect: method 'mct_plus'.*mct"):
        Config.preset("smoke").replace(method="mct_plus", mct_head_weights=True)
