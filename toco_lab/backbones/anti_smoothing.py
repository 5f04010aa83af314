"""Remedies against over-smoothing inside the backbone: AttnScale and FeatScale as parts added to a timm ViT.

Source: Wang et al., "Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain Analysis" (ICLR 2022, arXiv
2203.05962), section 4. Attention is a low-pass filter over the tokens: layer by layer only their mean, the direct
component (DC), is left. AttnScale strengthens what else the attention does, FeatScale what else it gives.

Exact from the paper: both formulas, one number per head or per channel and block, zero at the start, so that the model
begins as it was. A choice: the mean is over all T tokens of the sequence, with the class token and other prefix tokens,
which are mixed by the attention like the patches; where the parts sit, at hooks of the attention, so that no forward
pass of timm is written anew. Parameters carry names of their own (`blocks.0.attn.attn_scale.omega`): a checkpoint of
the plain model loads with `strict=False` and lacks these alone.
"""

import torch
from torch import Tensor, nn

from toco_lab.backbones.kinds import encoder_of

REMEDY_PARAMETERS = ("attn_scale.omega", "feat_scale.s", "feat_scale.t")  # ends of names; no plain checkpoint has them


class AttnScale(nn.Module):
    """Attention with its high-pass part times 1 + omega: A_LP + (1 + omega) A_HP, A_LP = 1 1^T / T, A_HP = A - A_LP.

    Rows still sum to 1; for omega > 0 entries may be negative.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.omega = nn.Parameter(torch.zeros(num_heads))

    def forward(self, attention: Tensor) -> Tensor:
        """(B, heads, T, T), rows summing to 1 -> the same shape."""
        return attention + self.omega[:, None, None] * (attention - 1 / attention.shape[-1])

    def _before(self, _: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        """As a forward pre-hook of the dropout behind the softmax."""
        return self(inputs[0])


class FeatScale(nn.Module):
    """Tokens with both parts weighed per channel: X + diag(s) DC(X) + diag(t) HC(X), DC the mean over tokens, HC the
    rest.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.zeros(dim))
        self.t = nn.Parameter(torch.zeros(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> the same shape."""
        mean = tokens.mean(dim=1, keepdim=True)
        return tokens + self.s * mean + self.t * (tokens - mean)

    def _after(self, _: nn.Module, __: tuple, output: Tensor) -> Tensor:
        """As a forward hook of the attention."""
        return self(output)


def add_attn_scale(model: nn.Module) -> nn.Module:
    """Put AttnScale behind the softmax of every block, in place; fused attention is switched off for good.

    Whoever looks at the attention by the input of `attn_drop` sees the map as it is used, after the scaling.

    Args:
        model: A timm ViT, or a model that carries one as `.encoder`.

    Returns:
        The same model.

    Raises:
        ValueError: If a block has no attention of timm's kind, or has this remedy already.
    """
    for attn in _attentions(model, "attn_scale"):
        attn.attn_scale = AttnScale(attn.num_heads).to(attn.proj.weight)
        attn.attn_drop.register_forward_pre_hook(attn.attn_scale._before)
        # The fused kernel goes from queries and keys to the output and never forms the matrix that is scaled here.
        attn.fused_attn = False
    return model


def add_feat_scale(model: nn.Module) -> nn.Module:
    """Put FeatScale on the output of every block's attention, in place; as `add_attn_scale`, fused attention stays."""
    for attn in _attentions(model, "feat_scale"):
        attn.feat_scale = FeatScale(attn.proj.out_features).to(attn.proj.weight)
        attn.register_forward_hook(attn.feat_scale._after)
    return model


def _attentions(model: nn.Module, remedy: str) -> list[nn.Module]:
    """The attention of every block, all of them looked at before the first is changed."""
    attentions = [getattr(block, "attn", None) for block in encoder_of(model).blocks]
    for attn in attentions:
        if not all(hasattr(attn, name) for name in ("fused_attn", "attn_drop", "num_heads", "proj")):
            raise ValueError(f"{remedy} needs blocks with timm's attention as `attn`, got {type(attn).__name__}")
        if hasattr(attn, remedy):
            raise ValueError(f"the model has {remedy} already")
    return attentions
