"""What the methods of this room need of an encoder: a plain ViT with a class token whose attention can be read."""

from torch import nn

from toco_lab.backbones.interfaces import PlainViT
from toco_lab.backbones.kinds import encoder_of, is_timm_attention


def vit_with_class_token(encoder: nn.Module, method: str) -> PlainViT:
    """The encoder as a plain ViT with a class token.

    Raises:
        ValueError: If it is none, or its attention cannot be read; the message names the method.
    """
    reads = f"method {method!r} reads the attention of a class token to all patches"
    try:
        vit = encoder_of(encoder)
    except ValueError as error:
        raise ValueError(f"{reads}: {error}. Take a plain ViT, or method 'toco'") from error
    if getattr(vit, "cls_token", None) is None:
        raise ValueError(f"{reads}, and this {type(vit).__name__} has no class token: take another backbone")
    if unread := {type(part).__name__ for block in vit.blocks if not is_timm_attention(part := block.attn)}:
        raise ValueError(f"{reads}, and that of {', '.join(sorted(unread))} cannot be read: take another backbone")
    return vit
