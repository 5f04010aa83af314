"""The backbone of a config, made by timm."""

import json
import types
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from toco_lab.backbones.anti_smoothing import add_attn_scale, add_feat_scale
from toco_lab.backbones.interfaces import Encoder, PlainViT
from toco_lab.backbones.kinds import blocks_of, is_plain_vit
from toco_lab.backbones.stages import TRAINED_STAGED
from toco_lab.config import VIT_SIZES, Config, backbone_kind
from toco_lab.files import did_you_mean, require
from toco_lab.words import counted

_GRIDS_KEPT = 8  # grids of resampled positions; images of their own sizes would need one each


def build_encoder(cfg: Config) -> Encoder:
    """The timm model that the config names, with random weights, for any image size.

    It has no classification head and no stochastic depth, and the position embedding of a ViT is frozen.

    Raises:
        ValueError: For an unknown timm name or tag, a family that is not read here, or arguments it does not take.
    """
    require(cfg, Config, "cfg", ": make one with Config.preset(name)")
    name, kind, given = full_backbone_name(cfg), backbone_kind(cfg.backbone), _arguments(cfg)
    further = json.loads(cfg.backbone_args or "{}")
    if taken := sorted(further.keys() & {*given, "pretrained", "in_chans", "features_only"}):
        raise ValueError(f"backbone_args cannot set {', '.join(taken)}: other fields of the config, or the method, do")
    encoder = _create(name, given | further)
    if kind != "vit":
        if type(encoder).__name__ not in TRAINED_STAGED:
            raise ValueError(_no_backbone(name, f"timm makes it a {type(encoder).__name__}, which is not read here"))
        return encoder
    if not is_plain_vit(encoder):
        raise ValueError(_no_backbone(name, f"{type(encoder).__name__} is no plain ViT"))
    if encoder.pos_embed is not None:
        if isinstance(encoder, VisionTransformer):
            encoder._pos_embed = types.MethodType(_add_positions, encoder)
            encoder.pos_embed_antialias = cfg.pos_embed_antialias
        encoder.pos_embed.requires_grad_(False)
    freeze_blocks(encoder, cfg.frozen_blocks)
    if cfg.anti_smoothing == "attn_scale":
        add_attn_scale(encoder)
    elif cfg.anti_smoothing == "feat_scale":
        add_feat_scale(encoder)
    return encoder


def freeze_blocks(encoder: PlainViT, count: int) -> None:
    """Let the first `count` blocks of a plain ViT learn nothing, nor anything before them: no gradient reaches them.

    Raises:
        ValueError: If the encoder has fewer blocks.
    """
    blocks = blocks_of(encoder)
    if count > len(blocks):
        raise ValueError(f"frozen_blocks {count} is more than the {counted(len(blocks), 'block')} of the backbone")
    if count == 0:
        return
    learning = [*blocks[count:], *(part for name in ("norm", "fc_norm") if (part := getattr(encoder, name, None)))]
    kept = {id(weight) for part in learning for weight in part.parameters()}
    for weight in encoder.parameters():
        if id(weight) not in kept:
            weight.requires_grad_(False)


def _arguments(cfg: Config) -> dict[str, Any]:
    """What `timm.create_model` is told by the config, its free `backbone_args` aside."""
    kind = backbone_kind(cfg.backbone)
    given: dict[str, Any] = {"num_classes": 0, "global_pool": "token" if kind == "vit" else ""}
    if kind == "vit":
        arguments = {"image_size": "img_size"}  # config field -> timm's argument, where they differ
        sizes = {arguments.get(size, size): getattr(cfg, size) for size in VIT_SIZES}
        given |= {"dynamic_img_size": True} | {size: value for size, value in sizes.items() if value is not None}
    elif kind == "swin":
        given |= {"strict_img_size": False, "drop_path_rate": 0.0}
    else:
        given |= {"output_stride": cfg.output_stride or 16, "drop_path_rate": 0.0}
    return given


def full_backbone_name(cfg: Config) -> str:
    """timm's name of the backbone with the tag of its weights.

    Raises:
        ValueError: If timm knows no such tag of this model; those it knows are listed.
    """
    if not cfg.weights_tag:
        return cfg.backbone
    name = f"{cfg.backbone}.{cfg.weights_tag}"
    known = list(timm.models.get_arch_pretrained_cfgs(cfg.backbone))
    if name not in known:
        tags = ", ".join(one.partition(".")[2] for one in known if "." in one) or "none"
        raise ValueError(f"timm has no weights_tag {cfg.weights_tag!r} for {cfg.backbone}; there are: {tags}")
    return name


def _create(name: str, arguments: dict[str, Any]) -> Encoder:
    """timm.create_model, with errors that name the backbone and list the kinds that can be read."""
    try:
        return cast(Encoder, timm.create_model(name, **arguments))
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        # a ViT that pools instead of reading a class token: its class token will be the mean
        if isinstance(error, AssertionError) and arguments["global_pool"] == "token":
            return _create(name, arguments | {"global_pool": ""})
        raise ValueError(_no_backbone(name, str(error) or type(error).__name__)) from error
    except Exception as error:  # of the network, the Hub and the files, from several libraries
        if ":" not in name:
            raise
        raise ValueError(
            f"backbone {name!r} cannot be fetched ({type(error).__name__}: {str(error).partition('. ')[0]}). "
            "Check the name. Without a network it must lie in the cache of the Hub (HF_HOME), or be a folder with "
            "config.json and model.safetensors: local-dir:FOLDER"
        ) from error


def _no_backbone(name: str, reason: str) -> str:
    hint = "" if timm.is_model(name) or ":" in name else did_you_mean(name.partition(".")[0], timm.list_models())
    return (
        f"backbone {name!r} cannot be built: {reason}{hint}. Backbones are "
        "timm's plain ViTs (vit, deit, eva), Swin and Swin v2, ResNet and ConvNeXt; BEiT and other families are read "
        "for analysis only (smoothing_per_layer)"
    )


def image_statistics(encoder: Encoder, normalisation: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (RGB, in 0..1) by which images are normalised.

    Args:
        encoder: The backbone.
        normalisation: `imagenet` has the numbers that the released code always uses, `backbone` those that the weights
            of this backbone were trained with.
    """
    if normalisation == "imagenet":
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return tuple(encoder.pretrained_cfg["mean"]), tuple(encoder.pretrained_cfg["std"])


def has_own_positions(encoder: nn.Module) -> bool:
    """Whether an encoder adds positions as `build_encoder` made it do, which knows every kind of prefix token."""
    return getattr(getattr(encoder, "_pos_embed", None), "__func__", None) is _add_positions


def _add_positions(encoder: PlainViT, patches: Tensor) -> Tensor:
    """timm's `_pos_embed` with a choice of antialiasing: the released code resamples without, timm always with.

    Args:
        patches: Patch embeddings, (B, h, w, D).

    Returns:
        Prefix tokens and patches with their positions, (B, prefix + h*w, D).
    """
    positions = cast(Tensor, encoder.pos_embed)  # a ViT without one keeps timm's own method
    batch, height, width, dim = patches.shape
    learnt = (getattr(encoder, name, None) for name in ("cls_token", "dist_token", "reg_token"))
    prefix = [token.expand(batch, -1, -1) for token in learnt if token is not None]
    placed = 0 if encoder.no_embed_class else encoder.num_prefix_tokens  # prefix tokens that have a position
    tokens = patches.reshape(batch, -1, dim) + _positions_on_grid(encoder, placed, height, width)
    if placed:
        prefix = [torch.cat(prefix, dim=1) + positions[:, :placed]]
    return encoder.pos_drop(torch.cat([*prefix, tokens], dim=1))


def _positions_on_grid(encoder: PlainViT, placed: int, height: int, width: int) -> Tensor:
    """Positions of the patches (1, h*w, D), resampled to a grid where it is not the model's own.

    A training step asks for the same few grids again and again, and the resampling took a sixth of a ViT-B step's time
    on a GPU: frozen positions are resampled once, until other weights are loaded or the model moves.
    """
    positions = cast(Tensor, encoder.pos_embed)
    if tuple(encoder.patch_embed.grid_size) == (height, width):
        return positions[:, placed:]
    if positions.requires_grad or positions.is_inference() or torch.compiler.is_compiling():
        return _resampled(encoder, positions, placed, height, width)
    state = (positions._version, positions.device, positions.dtype, encoder.pos_embed_antialias)
    kept: dict[tuple[int, int], tuple[Any, Tensor]] = encoder.__dict__.setdefault("_position_grids", {})
    known = kept.pop((height, width), None)
    if known is None or known[0] != state:
        with torch.inference_mode(False), torch.no_grad():
            known = state, _resampled(encoder, positions, placed, height, width)
    kept[height, width] = known  # the last of the dictionary: the first is the one that was not asked for the longest
    if len(kept) > _GRIDS_KEPT:
        del kept[next(iter(kept))]
    return known[1]


def _resampled(encoder: PlainViT, positions: Tensor, placed: int, height: int, width: int) -> Tensor:
    grid = positions[:, placed:].transpose(1, 2).unflatten(2, encoder.patch_embed.grid_size)
    mode, antialias = getattr(encoder, "pos_embed_mode", "bicubic"), encoder.pos_embed_antialias
    if excess := getattr(encoder, "pos_embed_excess", 0.0):
        scale = tuple((new + excess) / old for new, old in zip((height, width), grid.shape[-2:], strict=True))
        grid = F.interpolate(grid, scale_factor=scale, recompute_scale_factor=False, mode=mode, antialias=antialias)
    else:
        grid = F.interpolate(grid, (height, width), mode=mode, antialias=antialias)
    return grid.flatten(2).transpose(1, 2)
