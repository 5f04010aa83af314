"""Networks of torchvision and of Hugging Face transformers as encoders.

torchvision's ViT becomes timm's ViT with the same weights, so attention, rollout and the class token are read as in any
plain ViT. Its other networks, and those of transformers, are read at their blocks by `own_model.adapt`.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from toco_lab.backbones.interfaces import PlainViT
from toco_lab.backbones.modes import evaluating
from toco_lab.backbones.own_model import OwnModel, adapt, first_pass, first_tensor

_TIMM_NAMES = {  # part of a name in torchvision's ViT -> timm's
    "class_token": "cls_token",
    "conv_proj.": "patch_embed.proj.",
    "encoder.pos_embedding": "pos_embed",
    "encoder.layers.encoder_layer_": "blocks.",
    "encoder.ln.": "norm.",
    "heads.head.": "head.",
    ".ln_": ".norm",
    ".self_attention.in_proj_": ".attn.qkv.",
    ".self_attention.out_proj.": ".attn.proj.",
    ".mlp.0.": ".mlp.fc1.",
    ".mlp.3.": ".mlp.fc2.",
}
_FINAL_NORM = {"VisionTransformer": "encoder.ln", "SwinTransformer": "norm", "ResNet": None, "ConvNeXt": None}
_AGREE = 1e-3  # largest difference of the tokens, as a share of the largest one


def from_torchvision(network: nn.Module) -> PlainViT | OwnModel:
    """A classifier of torchvision as an encoder: ViT, Swin (v2), ResNet, ConvNeXt.

    A ViT is copied into timm's, which is checked to give the same tokens, and which takes any image size. The others
    are read as they are. All keep their classifier, so Grad-CAM explains its classes.

    Raises:
        ValueError: If it is none of these; `adapt` reads any network whose blocks you name.

    Example:
        >>> from torchvision.models import VisionTransformer
        >>> net = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3)
        >>> vit = from_torchvision(net)
        >>> type(vit).__module__, len(vit.blocks), vit.num_prefix_tokens
        ('timm.models.vision_transformer', 2, 1)
    """
    kind = type(network).__name__
    if not type(network).__module__.startswith("torchvision.") or kind not in _FINAL_NORM:
        raise ValueError(
            f"{kind} of {type(network).__module__} is no {', '.join(_FINAL_NORM)} of torchvision; tl.backbones.adapt "
            "reads any network whose blocks you name"
        )
    if kind == "VisionTransformer" and isinstance(network.conv_proj, nn.Conv2d) and network.representation_size is None:
        return _timm_vit(network)
    blocks = [
        f"{stage}.{name}" for stage in _stages(network) for name, _ in network.get_submodule(stage).named_children()
    ]
    return adapt(network, blocks, norm=_FINAL_NORM[kind], image_size=int(getattr(network, "image_size", 224)))


def _stages(network: Any) -> list[str]:
    """Names of the parts of a network of torchvision whose children are its blocks."""
    if hasattr(network, "features"):  # Swin, ConvNeXt: a stage behind each change of the grid
        return [f"features.{number}" for number in range(1, len(network.features), 2)]
    return ["encoder.layers"] if hasattr(network, "encoder") else ["layer1", "layer2", "layer3", "layer4"]


def _timm_vit(network: Any) -> PlainViT:
    """torchvision's ViT with plain patches as timm's."""
    norm, block = network.encoder.ln, network.encoder.layers[0]
    vit = VisionTransformer(
        img_size=network.image_size,
        patch_size=network.patch_size,
        num_classes=network.num_classes,
        embed_dim=network.hidden_dim,
        depth=len(network.encoder.layers),
        num_heads=block.num_heads,
        mlp_ratio=block.mlp[0].out_features / network.hidden_dim,
        norm_layer=partial(nn.LayerNorm, eps=norm.eps),
        dynamic_img_size=True,
    )
    vit.load_state_dict({_renamed(name): value for name, value in network.state_dict().items()})
    like = next(network.parameters())
    vit = vit.to(like).train(network.training)
    size = network.image_size
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(like)
    theirs: list[Tensor] = []
    hook = network.encoder.register_forward_hook(lambda _, __, output: theirs.append(output))
    with torch.no_grad(), evaluating(network), evaluating(vit):
        network(image)
        ours = vit.forward_features(image)
    hook.remove()
    if (ours - theirs[0]).abs().max() > _AGREE * theirs[0].abs().max():
        raise ValueError(
            "this ViT of torchvision does not compute what its class says: its parts were changed. Name its blocks to "
            "tl.backbones.adapt"
        )
    return cast(PlainViT, vit)


def _renamed(name: str) -> str:
    for theirs, ours in _TIMM_NAMES.items():
        name = name.replace(theirs, ours)
    return name


def from_transformers(network: nn.Module) -> OwnModel:
    """A vision model of Hugging Face transformers as an encoder.

    Tried are ViT, DeiT, DINOv2 (with registers too), DINOv3, BEiT, CLIP, SigLIP and I-JEPA.

    Its blocks are the list of as many parts as `config.num_hidden_layers` says, and its final norm is the layer norm
    behind them. A classifier in it keeps working, so Grad-CAM explains its classes. Images of other sizes than
    `config.image_size` are read where the model can interpolate its positions.

    Args:
        network: A model of transformers that takes `pixel_values`.

    Raises:
        ValueError: If it has no such config or blocks, when `adapt` reads any network whose blocks you name; or if it
            leaves out patches and shuffles the others (ViTMAE).
    """
    config = getattr(network, "config", None)
    depth, size = getattr(config, "num_hidden_layers", None), getattr(config, "image_size", None)
    size = size[0] if isinstance(size, list | tuple) else size
    lists = [name for name, part in network.named_modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
    if not lists or not size:
        raise ValueError(
            f"{type(network).__name__} is no vision model of transformers with plain blocks (config.image_size, "
            "config.num_hidden_layers and a list of as many blocks); tl.backbones.adapt reads any network whose blocks "
            "you name"
        )
    if hasattr(config, "mask_ratio"):
        raise ValueError(
            f"{type(network).__name__} leaves out patches at random and shuffles the others, so its tokens have no "
            "places: load its weights into a ViTModel"
        )
    blocks = [f"{lists[0]}.{number}" for number in range(cast(int, depth))]
    call = partial(_call_transformers, _interpolates(network))
    return adapt(network, blocks, norm=_norm_behind(network, blocks[-1], size, call), image_size=size, call=call)


def _call_transformers(interpolates: bool, network: nn.Module, image: Tensor) -> Any:
    more = {"interpolate_pos_encoding": True} if interpolates else {}
    return network(pixel_values=image, **more)


def _interpolates(network: nn.Module) -> bool:
    """Whether the model takes images of other sizes when it is told to."""
    return "interpolate_pos_encoding" in inspect.signature(network.forward).parameters


def _norm_behind(
    network: nn.Module, block: str, image_size: int, call: Callable[[nn.Module, Tensor], Any]
) -> str | None:
    """Name of the norm that all tokens go through behind the last block; None if there is none."""
    norms = [name for name, part in network.named_modules() if "norm" in type(part).__name__.lower()]
    outputs, _ = first_pass(network, [*norms, block], image_size, call)
    shapes = {name: one.shape for name, output in outputs.items() if (one := first_tensor(output)) is not None}
    names = list(shapes)  # in the order of the pass
    behind = [name for name in names[names.index(block) + 1 :] if shapes[name] == shapes[block]]
    return behind[-1] if behind else None
