"""Test-time registers: an extra token that takes the artifacts of a ViT which was trained without registers.

Source: Jiang et al. 2025, "Vision Transformers Don't Need Trained Registers" (arXiv 2506.08010). In large ViTs a few
patch tokens become much longer than the others (`artifacts`), and a few hidden units of the MLPs make them so, the
"register neurons": those that are most active where artifacts appear. An empty token joins the sequence; in each pass
it takes the largest activation of every register neuron, and the patches get 0 there. Nothing is trained.

    neurons = find_register_neurons(model, images)
    maps_of_model(with_registers(model, neurons), images, name="with registers")

Here a patch is an artifact where the lengths of an image have two modes, in place of a cut in absolute length that is
read off each model; and blocks behind the one where artifacts appear are left out, in place of a number per model.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from toco_lab.backbones.activations import capture
from toco_lab.backbones.build import has_own_positions
from toco_lab.backbones.interfaces import PlainViT
from toco_lab.backbones.kinds import encoder_of
from toco_lab.backbones.pixels import check_normalised
from toco_lab.smoothing.artifacts import length_modes

MOST_NEURONS = 10


@dataclass(frozen=True)
class RegisterNeurons:
    """Hidden units that make artifacts.

    Attributes:
        neurons: (block, unit), counted from 0; the most active one first. Empty where no image has artifacts.
        activations: Mean |activation| of each on the artifacts, a mean over the images that have some.
        images: Number of images that have artifacts.
        artifacts: Number of artifacts in them.
        last_block: Number of the last block that was searched, from 1; 0 without artifacts.
    """

    neurons: tuple[tuple[int, int], ...]
    activations: tuple[float, ...]
    images: int
    artifacts: int
    last_block: int


@torch.no_grad()
def find_register_neurons(
    model: nn.Module, images: Iterable[Tensor], *, most: int = MOST_NEURONS, last_block: int | None = None
) -> RegisterNeurons:
    """The hidden units that are most active on artifacts; one pass per image.

    Artifacts are the patch tokens of the longer mode after the last block but one (`artifacts.length_modes`), where the
    reference looks for them in DINOv2. The score of a unit is its mean |activation|, behind the nonlinearity, on the
    artifacts of an image, and then the mean over the images that have some.

    Args:
        model: A plain ViT of timm, or a model that carries one as `.encoder` (ToCo).
        images: Normalised, (3, H, W) each. The reference takes 500.
        most: So many units.
        last_block: Search the MLPs up to this block, counted from 1; None: the block after which the artifacts have got
            half of what they are longer than the other patches in the end.

    Raises:
        ValueError: If the model is no plain ViT with an MLP in each block, or a number is out of range.
    """
    encoder = _checked(model)
    depth = len(encoder.blocks)
    if most < 1 or (last_block is not None and not 1 <= last_block <= depth):
        raise ValueError(f"most must be at least 1 and last_block in 1..{depth}, got {most} and {last_block}")
    activations, excess, artifacts = [], [], 0
    for index, image in enumerate(images):
        check_normalised(image, f"image {index}")
        hidden, blocks = _one_pass(encoder, image[None])
        lengths = torch.stack([tokens.norm(dim=1) for tokens in blocks])
        looked_at = lengths[max(depth - 2, 0)]
        modes = length_modes(looked_at.cpu().numpy())
        if modes.cut is None:
            continue
        long = looked_at > modes.cut
        activations.append([layer[long].abs().mean(0).cpu() for layer in hidden])
        excess.append((lengths[:, long].mean(1) - lengths[:, ~long].mean(1)).cpu())
        artifacts += int(long.sum())
    if not activations:
        return RegisterNeurons((), (), 0, 0, 0)
    if last_block is None:
        last_block = _block_of_rise(torch.stack(excess).mean(0)[: max(depth - 1, 1)])
    scores = [torch.stack(layer).mean(0) for layer in zip(*activations, strict=True)][:last_block]
    places = [(block, unit) for block, layer in enumerate(scores) for unit in range(len(layer))]
    best = torch.cat(scores).topk(min(most, len(places)))
    chosen = tuple(places[index] for index in best.indices.tolist())
    return RegisterNeurons(chosen, tuple(best.values.tolist()), len(activations), artifacts, last_block)


def with_registers(model: nn.Module, neurons: RegisterNeurons, *, count: int = 1) -> nn.Module:
    """A copy of a model with test-time registers.

    They stand behind the class token, begin as zeros without a position, and count among the prefix tokens, so that
    whatever reads patch tokens sees the patches alone. As in the reference the largest activation is that of all
    tokens, each register gets it, and the class token keeps its own.

    Args:
        model: As in `find_register_neurons`; left alone.
        neurons: What `find_register_neurons` found. Without any, a register is but one more token.
        count: Number of registers.

    Raises:
        ValueError: If the model is no plain ViT of timm's own kind, has registers already, or lacks one of the units.
    """
    _checked(model)
    model = copy.deepcopy(model)
    encoder = encoder_of(model)
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if getattr(encoder, "reg_token", None) is not None:
        raise ValueError(f"{type(encoder).__name__} was trained with registers: it needs none at test time")
    standard = isinstance(encoder, VisionTransformer)
    if not standard or not (type(encoder)._pos_embed is VisionTransformer._pos_embed or has_own_positions(encoder)):
        raise ValueError(f"{type(encoder).__name__} puts its tokens together in its own way: no register can join them")
    placed = encoder.num_prefix_tokens
    blank = next(encoder.parameters()).new_zeros(1, count, encoder.embed_dim)
    encoder.reg_token = nn.Parameter(blank, requires_grad=False)
    encoder.num_prefix_tokens = placed + count
    if encoder.pos_embed is not None and not encoder.no_embed_class:
        own = encoder.pos_embed.detach()
        longer = torch.cat([own[:, :placed], blank, own[:, placed:]], dim=1)
        encoder.pos_embed = nn.Parameter(longer, requires_grad=encoder.pos_embed.requires_grad)
    registers = slice(placed, placed + count)
    for block, units in _by_block(encoder, neurons).items():
        _second_layer(encoder, block).register_forward_pre_hook(_Shift(registers, units))
    return model


class _Shift:
    """Moves the activations of some hidden units from the patches to the registers, before the MLP's second layer."""

    def __init__(self, registers: slice, units: list[int]) -> None:
        self.registers, self.units = registers, units

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(B, T, hidden) -> the same shape."""
        moved, units = inputs[0].clone(), self.units
        moved[:, self.registers.stop :, units] = 0
        moved[:, self.registers, units] = inputs[0][:, :, units].amax(dim=1, keepdim=True)
        return (moved, *inputs[1:])


def _checked(model: nn.Module) -> PlainViT:
    encoder = encoder_of(model)
    for number in range(1, len(encoder.blocks) + 1):
        if not isinstance(_second_layer(encoder, number - 1), nn.Linear):
            raise ValueError(f"block {number} of {type(encoder).__name__} has no MLP with a second linear layer `fc2`")
    return encoder


def _second_layer(encoder: PlainViT, block: int) -> nn.Linear:
    """Behind the nonlinearity of the MLP: its inputs are the hidden units."""
    return cast(nn.Linear, getattr(getattr(encoder.blocks[block], "mlp", None), "fc2", None))


def _by_block(encoder: PlainViT, neurons: RegisterNeurons) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for block, unit in neurons.neurons:
        if not (0 <= block < len(encoder.blocks) and 0 <= unit < _second_layer(encoder, block).in_features):
            raise ValueError(f"unit {unit} of block {block} (from 0) is not one of this {type(encoder).__name__}")
        found.setdefault(block, []).append(unit)
    return found


def _one_pass(encoder: PlainViT, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Hidden units of the MLP of each block, (N, hidden), and the patch tokens after each block, (N, D)."""
    hidden: list[Tensor] = []
    hooks = [
        _second_layer(encoder, index).register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
        for index in range(len(encoder.blocks))
    ]
    try:
        seen = capture(encoder, image)
    finally:
        for hook in hooks:
            hook.remove()
    return [seen.patches(one)[0] for one in hidden], [seen.patches(one)[0] for one in seen.after_block]


def _block_of_rise(excess: Tensor) -> int:
    """Number of the first block after which half of the final excess in length (L,) is there."""
    return int((excess >= 0.5 * excess[-1]).nonzero()[0].item()) + 1
