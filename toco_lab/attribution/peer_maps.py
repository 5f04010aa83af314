"""The maps of TS-CAM and GETAM, read from any model with a class token: a trained ToCo, or a classifier of timm.

Both were made for networks that their authors train for them (`toco_lab.peers` trains such). Here the same formulas
are applied to what a model already knows.
"""

from functools import reduce

import torch
from torch import Tensor, nn

from toco_lab.attribution.attention import read_gradients
from toco_lab.attribution.classifier_maps import block_cam
from toco_lab.attribution.reading import block_number
from toco_lab.backbones.activations import attention_maps
from toco_lab.backbones.kinds import encoder_of, has_class_token
from toco_lab.peers.getam import weighted_attention
from toco_lab.peers.tscam import attention_map, class_token_row


@torch.no_grad()
def coupled_attention(
    model: nn.Module, image: Tensor, class_index: int | Tensor, *, block: int | None = None
) -> Tensor:
    """TS-CAM's coupling: the CAM of the final tokens, times what the class token attends to, summed over blocks.

    Source: Gao et al., "TS-CAM" (ICCV 2021). In TS-CAM the class token learns through the patches that attend to it. In
    ToCo it is trained by class token contrast alone, and in a plain baseline by nothing.

    Args:
        model: ToCo on a ViT with a class token, or a timm ViT whose classifier is one linear map.
        image: Normalised, (B, 3, H, W).
        class_index: The class, one for all images or (B,).
        block: The last block whose attention counts, from 1; None takes all.

    Returns:
        (B, h, w), >= 0.

    Raises:
        ValueError: If the model has no such classifier, class, block or class token, or its attention cannot be read.
    """
    encoder = encoder_of(model)
    last = block_number(encoder, block)
    if not has_class_token(encoder):
        raise ValueError("TS-CAM couples a CAM with attention of the class token, and this model has none")
    with attention_maps(encoder, class_token_row) as rows:
        cam = block_cam(model, image, class_index)
    grid = (cam.shape[-2], cam.shape[-1])
    return (attention_map(rows[:last], encoder.num_prefix_tokens, grid) * cam).relu()


def getam(model: nn.Module, image: Tensor, class_index: int | Tensor, *, block: int | None = None) -> Tensor:
    """GETAM: attention times its gradient times its positive gradient, entry by entry, summed over blocks.

    Source: Sun et al., "GETAM" (arXiv 2112.02841). The authors take the row of the class token, because their logits
    read it. Here rows are averaged where the logit is read, as in `attention.gradient_attention`; where it reads the
    class token alone, that is the authors' map.

    Args:
        model: A timm ViT with a classifier, ToCo, or a model of `toco_lab.peers`.
        image: Normalised, (B, 3, H, W).
        class_index: The class whose logit is explained, one for all images or (B,).
        block: The first one that counts, from 1; None takes the upper half, as the authors do.

    Returns:
        (B, h, w), >= 0; values are tiny.

    Raises:
        ValueError: As in `attention.gradient_attention`.
    """
    encoder = encoder_of(model)
    first = block_number(encoder, block, len(encoder.blocks) // 2 + 1)
    seen = read_gradients(model, image, class_index, first)
    pairs = zip(seen.attention, seen.gradients, strict=True)
    return seen.read(reduce(torch.add, (weighted_attention(attention, gradient)[0] for attention, gradient in pairs)))
