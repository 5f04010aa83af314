"""Models of timm in stages: where their blocks are, and how the output of a block is read.

timm announces in `feature_info` what leaves each stage: which part it is, its channels and its stride. A model is read
if all its blocks lie in such stages and each gives one map that fits what was announced, channels first or last. All
else is refused with the reason: a block that is left out or misread would give a table that looks right.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

TRAINED_STAGED = (
    "SwinTransformer",
    "SwinTransformerV2",
    "ResNet",
    "ConvNeXt",
)  # timm's classes of models in stages that can be trained
READ = (
    "plain ViTs (ViT, DeiT, DINOv2, EVA, BEiT) and models in stages that announce every stage and give a map after "
    "each block (Swin, ResNet, ConvNeXt, EfficientNet and others, see toco_lab.backbones.kinds)"
)


@dataclass(frozen=True)
class Stage:
    """The blocks of one grid, their number of channels, and the side of one position in pixels.

    `width` is 0 where timm announces the grid alone (a stage of an EfficientNet that does not end its grid).
    """

    blocks: list[nn.Module]
    width: int
    stride: int


def refusal(encoder: nn.Module, reason: str) -> ValueError:
    """The error for a model that cannot be read: its class, why, and what is read."""
    return ValueError(
        f"{type(encoder).__name__} cannot be read: {reason}. Read are timm's {READ}; any other network by "
        "tl.backbones.adapt, from_torchvision or from_transformers"
    )


def stages_of(encoder: nn.Module) -> list[Stage]:
    """The stages of a Swin, ResNet, ConvNeXt or the like, first one first; none where timm announces none.

    Parts that lie between announced ones (in an EfficientNet) have the stride of the next announced one.

    Raises:
        ValueError: If blocks would be left out, or a part is announced for several grids.
    """
    stages, found = list[Stage](), list[str]()
    for name, width, stride in _announced(encoder):
        blocks = _blocks_at(encoder, name)
        if blocks is None and not stages:
            continue  # the stem, or the single blocks of a ViT
        if blocks is None and name != "final_conv":
            raise refusal(encoder, f"its part {name!r}, which timm announces, is no sequence of blocks")
        if name in found:
            raise refusal(encoder, f"its part {name!r} holds tokens of several grids at once")
        for other in _unannounced(encoder, found, name):
            stages.append(Stage(_blocks_at(encoder, other) or [], 0, stride))
            found.append(other)
        if blocks is not None:
            stages.append(Stage(blocks, width, stride))
            found.append(name)
    if stages:
        stages += [
            Stage(_blocks_at(encoder, name) or [], 0, stages[-1].stride) for name in _unannounced(encoder, found)
        ]
    return stages


def read_map(encoder: nn.Module, output: Any, stage: Stage, size: Sequence[int], *, like: bool | None = None) -> Tensor:
    """The output of a block as (B, D, h, w), whichever layout it has.

    Args:
        encoder: The model that the block belongs to.
        output: What the block gave.
        stage: The stage of the block.
        size: Height and width of the image that the model was given.
        like: Whether other blocks of this class have their channels last, where that is known. It decides if rows,
            columns and channels are alike in number.

    Raises:
        ValueError: If the output is no map of the announced channels and stride, or could be read in two ways.
    """
    last = channels_last(encoder, output, stage, size)
    if last is None:
        last = declared_last(encoder)
    if last is None:
        last = like
    if last is None:
        raise refusal(encoder, f"a map {tuple(output.shape)} can be read in two ways; take another image size")
    return output.permute(0, 3, 1, 2) if last else output


def channels_last(encoder: nn.Module, output: Any, stage: Stage, size: Sequence[int]) -> bool | None:
    """Whether a map has its channels last; None if its numbers do not tell.

    Raises:
        ValueError: If it is no map of the announced channels and stride.
    """
    grid = (size[0] // stage.stride, size[1] // stage.stride)
    shape = tuple(output.shape) if isinstance(output, Tensor) else ()
    first = len(shape) == 4 and shape[2:] == grid and stage.width in (0, shape[1])
    last = len(shape) == 4 and shape[1:3] == grid and stage.width in (0, shape[3])
    if not first and not last:
        what = f"a tensor {shape}" if shape else f"a {type(output).__name__}"
        wanted = f"maps of {stage.width or 'any number of'} channels on a grid of {grid[0]} x {grid[1]}"
        raise refusal(encoder, f"a block or the end of the model gives {what} where timm announces {wanted}")
    return None if first and last else last


def declared_last(encoder: nn.Module) -> bool | None:
    """Whether a model of a family that can be trained has its channels last, and an own model that `adapt` reads (no).

    None for others, whose blocks may vary.
    """
    if all(one.__name__ not in (*TRAINED_STAGED, "OwnModel") for one in type(encoder).__mro__):
        return None
    return getattr(encoder, "output_fmt", "NCHW") == "NHWC"


def _announced(encoder: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Name, channels and stride of what timm announces of a model, its stem left out."""
    info = getattr(encoder, "feature_info", None)
    if not isinstance(info, list | tuple) or not hasattr(encoder, "forward_features"):
        return
    for one in info:
        if not one["module"].startswith("stem"):
            yield one["module"], one["num_chs"], one["reduction"]


def _blocks_at(encoder: nn.Module, name: str) -> list[nn.Module] | None:
    """The blocks of a part; None if it is no sequence, or one of single layers (the stem of some models)."""
    try:
        part = encoder.get_submodule(name)
    except AttributeError:  # timm announces some parts by names that they do not have
        return None
    blocks = getattr(part, "blocks", part)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not len(blocks):
        return None
    return list(blocks) if all(any(True for _ in block.children()) for block in blocks) else None


def _unannounced(encoder: nn.Module, found: Sequence[str], until: str | None = None) -> list[str]:
    """Sequences of blocks beside the announced ones, not found yet; those before the part `until`, if it is given."""
    parents = dict.fromkeys(name.rpartition(".")[0] for name in [*found, until or ""] if "." in name)
    names = []
    for parent in parents:
        for child, _ in encoder.get_submodule(parent).named_children():
            name = f"{parent}.{child}"
            if name == until:
                break
            if name not in found and _blocks_at(encoder, name) is not None:
                names.append(name)
    return names
