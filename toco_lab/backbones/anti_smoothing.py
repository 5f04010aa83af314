"""Anti-smoothing inside the backbone: AttnScale and FeatScale, two parts that are added to a timm ViT.

Source: Wang et al., "Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain Analysis" (ICLR 2022, arXiv
2203.05962), section 4. Attention is a low-pass filter over the tokens: layer by layer, it leaves only their mean, the
direct component (DC). AttnScale strengthens the rest of the attention matrix, FeatScale the rest of its output.

From the paper: both formulas, and one number per block and head (AttnScale) or channel (FeatScale), zero at the start,
so that the model begins as it was. Our choices: the mean is over all T tokens of the sequence, prefix tokens included,
because attention mixes them with the patches; and the parts sit at hooks of the attention, so that timm's forward pass
stays as it is. Their parameters have names of their own (`blocks.0.attn.attn_scale.omega`): a checkpoint of the plain
model loads with `strict=False` and lacks only these.
"""

import torch
from torch import Tensor, nn

from toco_lab.backbones.interfaces import SelfAttention
from toco_lab.backbones.kinds import encoder_of, is_timm_attention

# how the names of these parameters end: no checkpoint of a plain model has them
ANTI_SMOOTHING_PARAMETERS = ("attn_scale.omega", "feat_scale.s", "feat_scale.t")


class AttnScale(nn.Module):
    """Multiplies the high-pass part of attention by 1 + omega: A_LP + (1 + omega) A_HP.

    A_LP = 1 1^T / T is the low-pass part, A_HP = A - A_LP the high-pass part, omega one number per head.
    Rows still sum to 1; entries may be negative where omega > 0.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.omega = nn.Parameter(torch.zeros(num_heads))

    def forward(self, attention: Tensor) -> Tensor:
        """Attention (B, heads, T, T) whose rows sum to 1 -> the same shape."""
        return attention + self.omega[:, None, None] * (attention - 1 / attention.shape[-1])

    def before_dropout(self, _: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        """`forward` as a forward pre-hook of the dropout behind the softmax."""
        return self(inputs[0])


class FeatScale(nn.Module):
    """Weighs both parts of the tokens per channel: X + DC(X) diag(s) + HC(X) diag(t).

    DC(X) is the mean over tokens, HC(X) = X - DC(X) the rest; s and t have one number per channel.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.zeros(dim))
        self.t = nn.Parameter(torch.zeros(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, D) -> the same shape."""
        mean = tokens.mean(dim=1, keepdim=True)
        return tokens + self.s * mean + self.t * (tokens - mean)

    def after_attention(self, _: nn.Module, __: tuple, output: Tensor) -> Tensor:
        """`forward` as a forward hook of the attention."""
        return self(output)


def add_attn_scale(model: nn.Module) -> nn.Module:
    """Put AttnScale behind the softmax of every block, in place; fused attention is switched off for good.

    A hook on the input of `attn_drop`, as `activations.attention_maps` has, sees the attention after the scaling.

    Args:
        model: A timm ViT, or a model that carries one as `.encoder`.

    Returns:
        The same model.

    Raises:
        ValueError: If a block has no attention of timm's kind, or has AttnScale already.
    """
    for attn in _attentions(model, "attn_scale"):
        attn.attn_scale = scale = AttnScale(attn.num_heads).to(attn.proj.weight)
        attn.attn_drop.register_forward_pre_hook(scale.before_dropout)
        # the fused kernel goes from queries and keys to the output and never forms the matrix that is scaled here
        attn.fused_attn = False
    return model


def add_feat_scale(model: nn.Module) -> nn.Module:
    """Put FeatScale on the output of every block's attention, in place; fused attention stays on.

    Args:
        model: A timm ViT, or a model that carries one as `.encoder`.

    Returns:
        The same model.

    Raises:
        ValueError: If a block has no attention of timm's kind, or has FeatScale already.
    """
    for attn in _attentions(model, "feat_scale"):
        attn.feat_scale = scale = FeatScale(attn.proj.out_features).to(attn.proj.weight)
        attn.register_forward_hook(scale.after_attention)
    return model


def _attentions(model: nn.Module, part: str) -> list[SelfAttention]:
    """The attention of every block, each checked before `part` is added to the first."""
    attentions: list[SelfAttention] = []
    for block in encoder_of(model).blocks:
        attn = getattr(block, "attn", None)
        if not is_timm_attention(attn):
            raise ValueError(f"{part} needs blocks with timm's attention as `attn`, got {type(attn).__name__}")
        if hasattr(attn, part):
            raise ValueError(f"the model has {part} already")
        attentions.append(attn)
    return attentions
