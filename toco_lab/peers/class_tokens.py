"""A ViT with one class token per class, in place of its own one: the encoder of MCTformer.

The tokens become part of the encoder (`cls_token` (1, C, D)), so whatever reads an encoder reads the network that is
trained: similarity per layer, attention, token snapshots.
"""

import torch
from torch import nn

from toco_lab.backbones.interfaces import Encoder, PlainViT
from toco_lab.peers.vit import vit_with_class_token


def give_class_tokens(encoder: Encoder, num_classes: int, method: str) -> PlainViT:
    """Give a ViT C class tokens and take its final norm away, in place.

    Its class token and that token's position are copied C times, as released: training parts them. Registers and a
    distillation token stay behind the class tokens. MCTformer reads the raw output of the last block, so there is no
    final norm. The class tokens learn, also where blocks are frozen.

    Args:
        encoder: As `build_encoder` makes it.
        num_classes: C, at least 1.
        method: How messages name what needs the tokens.

    Returns:
        The same encoder.

    Raises:
        ValueError: If it is no plain ViT, has no class token, or its attention cannot be read.
    """
    vit = vit_with_class_token(encoder, method)
    assert vit.cls_token is not None
    vit.cls_token = nn.Parameter(vit.cls_token.detach().repeat(1, num_classes, 1))
    if vit.pos_embed is not None and not getattr(vit, "no_embed_class", False):
        first, rest = vit.pos_embed.detach()[:, :1], vit.pos_embed.detach()[:, 1:]
        positions = torch.cat([first.expand(-1, num_classes, -1), rest], dim=1)
        vit.pos_embed = nn.Parameter(positions, requires_grad=vit.pos_embed.requires_grad)
    vit.num_prefix_tokens += num_classes - 1
    for block in vit.blocks:  # rotary positions are for patches alone: EVA's attention counts what lies before them
        if hasattr(block.attn, "num_prefix_tokens"):
            block.attn.num_prefix_tokens = vit.num_prefix_tokens
    vit.norm = nn.Identity()
    return vit
