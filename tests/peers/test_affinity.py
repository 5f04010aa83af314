"""Patch affinity and maps spread along it, against loops written from the equations."""

import pytest
import timm
import torch

from toco_lab.backbones.activations import attention_maps, capture
from toco_lab.config import Config
from toco_lab.method.model import ToCo
from toco_lab.peers.affinity import PatchAttention, affinity_of_image, patch_affinity, row_normalised, spread


def attention(blocks: int = 3, batch: int = 2, heads: int = 2, tokens: int = 7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, heads, tokens, tokens, generator=generator).softmax(-1) for _ in range(blocks)]


@pytest.mark.parametrize("last", [0, 1, 2, 3])
def test_patch_affinity_is_the_sum_of_the_head_means(last):
    blocks, prefix = attention(), 3
    found = patch_affinity(blocks, prefix, last=last)
    for b in range(2):
        for i in range(4):
            for j in range(4):
                expected = sum(
                    one[b, head, prefix + i, prefix + j] / 2
                    for one in blocks[len(blocks) - (last or 3) :]
                    for head in range(2)
                )
                assert found[b, i, j].item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(patch_affinity([one.mean(1) for one in blocks], prefix, last=last), found)


def test_spread_sends_what_the_looked_at_patch_has_to_the_one_that_looks():
    affinity = patch_affinity(attention(), 1)
    maps = torch.rand(2, 5, 2, 3, generator=torch.Generator().manual_seed(1))
    found = spread(maps, affinity)
    for b in range(2):
        for c in range(5):
            for i in range(6):
                expected = sum(affinity[b, i, j] * maps[b, c, j // 3, j % 3] for j in range(6))
                assert found[b, c, i // 3, i % 3].item() == pytest.approx(float(expected), rel=1e-5)


def test_row_normalised_is_a_walk_and_its_powers():
    affinity = patch_affinity(attention(), 1)
    walk = row_normalised(affinity)
    torch.testing.assert_close(walk.sum(2), torch.ones(2, 6))
    torch.testing.assert_close(row_normalised(affinity, squarings=2), walk @ walk @ walk @ walk)
    constant = torch.full((2, 1, 2, 3), 0.7)
    torch.testing.assert_close(spread(constant, row_normalised(affinity, squarings=3)), constant)
    assert not row_normalised(torch.zeros(1, 4, 4)).any(), "a row of zeros stays"


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"last must lie in \[0, 3\].*got 4"):
        patch_affinity(attention(), 1, last=4)
    with pytest.raises(ValueError, match="got 0"):
        patch_affinity([], 1)
    with pytest.raises(ValueError, match="7 tokens have no patches behind 7 prefix tokens"):
        patch_affinity(attention(), 7)
    with pytest.raises(ValueError, match=r"affinity must be \(2, 6, 6\).*got \(2, 4, 4\)"):
        spread(torch.zeros(2, 3, 2, 3), torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match="squarings"):
        row_normalised(torch.ones(1, 2, 2), squarings=-1)


def test_affinity_of_any_plain_vit_is_that_of_its_whole_attention():
    model = ToCo(Config.preset("smoke"))
    image = torch.randn(2, 3, 50, 34, generator=torch.Generator().manual_seed(0))  # no whole patches
    found = affinity_of_image(model, image)
    assert found.shape == (2, 24, 24) and model.training
    whole = capture(model, image, attention=True)
    torch.testing.assert_close(found, patch_affinity(whole.attention, whole.num_prefix))
    with pytest.raises(ValueError, match="no plain ViT"):
        affinity_of_image(timm.create_model("resnet10t"), image)


def test_a_pass_keeps_no_attention_but_what_is_read():
    model = ToCo(Config.preset("smoke"))
    reader = PatchAttention(1, 1)
    with torch.no_grad(), attention_maps(model, reader) as rows:
        model.encoder.forward_features(torch.zeros(1, 3, 96, 96))
    assert [row.untyped_storage().nbytes() for row in rows] == [144 * 4] * 4
    assert reader.affinity.untyped_storage().nbytes() == 144 * 144 * 4
