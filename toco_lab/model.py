"""The network: any timm ViT, two classifiers, the LargeFOV decoder and the projection head with its EMA teacher."""

import copy
import types
from dataclasses import dataclass

import timm
import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from toco_lab.config import Config
from toco_lab.remedies import add_attn_scale, add_feat_scale


@dataclass(frozen=True)
class TokenFeatures:
    """Tokens of one encoder pass; h = H // patch size, w = W // patch size.

    Attributes:
        class_token: (B, D) after the final norm.
        patch_tokens: (B, D, h, w) after the final norm.
        aux_patch_tokens: (B, D, h, w), raw output of block `aux_layer`, NOT normalised.
    """

    class_token: Tensor
    patch_tokens: Tensor
    aux_patch_tokens: Tensor

    def detach(self) -> "TokenFeatures":
        """The same tokens without their history."""
        return TokenFeatures(self.class_token.detach(), self.patch_tokens.detach(), self.aux_patch_tokens.detach())


@dataclass(frozen=True)
class ToCoOutput:
    """What one forward pass gives.

    Attributes:
        features: The tokens everything below is computed from.
        logits, aux_logits: Image logits of the two classifiers, (B, C).
        cam, cam_aux: Raw class activation maps, (B, C, h, w), no ReLU, detached.
        seg_logits: Segmentation logits, (B, C + 1, h, w), channel 0 is background; None where not asked for.
    """

    features: TokenFeatures
    logits: Tensor
    aux_logits: Tensor
    cam: Tensor
    cam_aux: Tensor
    seg_logits: Tensor | None


class LargeFOVDecoder(nn.Module):
    """Two dilated 3x3 convolutions and a 1x1 one, ReLU between, no biases."""

    def __init__(self, embed_dim: int, width: int, num_outputs: int, dilation: int) -> None:
        super().__init__()
        wide = {"kernel_size": 3, "padding": dilation, "dilation": dilation, "bias": False}
        self.conv1 = nn.Conv2d(embed_dim, width, **wide)
        self.conv2 = nn.Conv2d(width, width, **wide)
        self.conv3 = nn.Conv2d(width, num_outputs, 1, bias=False)

    def forward(self, patch_tokens: Tensor) -> Tensor:
        """(B, D, h, w) -> logits (B, C + 1, h, w)."""
        return self.conv3(F.relu(self.conv2(F.relu(self.conv1(patch_tokens)))))


class ProjectionHead(nn.Module):
    """MLP with GELU, L2 normalisation, then a linear map whose rows have unit length (weight norm with gain fixed at
    1).
    """

    def __init__(self, embed_dim: int, hidden: int, bottleneck: int, out: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(embed_dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.directions = nn.Parameter(torch.randn(out, bottleneck))

    def forward(self, class_token: Tensor) -> Tensor:
        """(B, D) -> (B, out), each entry in [-1, 1]: cosine with one direction."""
        return F.linear(F.normalize(self.mlp(class_token), dim=-1), F.normalize(self.directions, dim=-1))


class ToCo(nn.Module):
    """Encoder and heads, sized by the config. Weights are random: see `checkpoints.initial_model` for pretrained ones.

    Only the projection head has a teacher: both heads read the same encoder. The position embedding is frozen.

    Raises:
        ValueError: If the backbone is not a ViT with a class token, or `aux_layer` names no block.
    """

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.encoder = build_encoder(cfg)
        blocks = len(self.encoder.blocks)
        if not -blocks <= cfg.aux_layer < blocks:
            raise ValueError(f"aux_layer {cfg.aux_layer} is not one of the {blocks} blocks of {cfg.backbone}")
        self.aux_index = cfg.aux_layer % blocks
        self.patch_size: int = self.encoder.patch_embed.patch_size[0]
        self.precision = cfg.precision
        self.pool = {"max": torch.amax, "average": torch.mean}[cfg.pooling]
        self.mean, self.std = image_statistics(self.encoder, cfg.normalisation)
        width, head = self.encoder.embed_dim, (cfg.head_hidden, cfg.head_bottleneck, cfg.head_out)
        self.classifier = nn.Conv2d(width, cfg.num_classes, 1, bias=False)
        self.aux_classifier = nn.Conv2d(width, cfg.num_classes, 1, bias=False)
        self.decoder = LargeFOVDecoder(width, cfg.decoder_width, cfg.num_classes + 1, cfg.decoder_dilation)
        self.projection_head = ProjectionHead(width, *head)
        self.teacher_head = copy.deepcopy(self.projection_head).requires_grad_(False)
        self.teacher_momentum = cfg.teacher_momentum

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: class, distillation, registers."""
        return self.encoder.num_prefix_tokens

    def encode(self, image: Tensor) -> TokenFeatures:
        """One encoder pass over normalised images (B, 3, H, W) of any size of at least one patch.

        Right and bottom pixels that do not fill a patch are dropped, as a strided convolution without padding does.
        """
        size = self.patch_size
        height, width = image.shape[-2] // size, image.shape[-1] // size
        if min(height, width) == 0:
            raise ValueError(f"image {tuple(image.shape[-2:])} is smaller than one patch of {size} pixels")
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[self.precision]
        with torch.autocast(image.device.type, dtype=dtype, enabled=self.precision != "fp32"):
            final, (aux,) = self.encoder.forward_intermediates(
                image[..., : height * size, : width * size], indices=[self.aux_index], norm=False, output_fmt="NCHW"
            )
        final = final.float()
        patch_tokens = final[:, self.num_prefix_tokens :].transpose(1, 2).unflatten(2, (height, width))  # (B, D, h, w)
        if self.aux_index == len(self.encoder.blocks) - 1:
            aux = patch_tokens  # the reference's list of blocks ends with the normalised one
        return TokenFeatures(final[:, 0], patch_tokens, aux.float())

    def cams(self, features: TokenFeatures) -> tuple[Tensor, Tensor]:
        """Raw CAMs (B, C, h, w) of the final and of the auxiliary tokens, detached."""
        with torch.no_grad():
            return self.classifier(features.patch_tokens), self.aux_classifier(features.aux_patch_tokens)

    def read(self, features: TokenFeatures, *, segment: bool = True) -> ToCoOutput:
        """The heads applied to given tokens. Image logits: tokens pooled per channel (maximum in ToCo), then the map."""
        cam, cam_aux = self.cams(features)
        tokens = features.patch_tokens, features.aux_patch_tokens
        pooled, aux_pooled = (self.pool(x, (2, 3), keepdim=True) for x in tokens)
        return ToCoOutput(
            features=features,
            logits=self.classifier(pooled).flatten(1),
            aux_logits=self.aux_classifier(aux_pooled).flatten(1),
            cam=cam,
            cam_aux=cam_aux,
            seg_logits=self.decoder(features.patch_tokens) if segment else None,
        )

    def forward(self, image: Tensor, *, segment: bool = True) -> ToCoOutput:
        """Normalised images (B, 3, H, W) -> `ToCoOutput`. No state changes: the teacher moves only in
        `update_teacher`.
        """
        return self.read(self.encode(image), segment=segment)

    @torch.no_grad()
    def update_teacher(self) -> None:
        """One EMA step of the teacher head: t <- m t + (1 - m) s. The released code does this before each forward."""
        for teacher, student in zip(self.teacher_head.parameters(), self.projection_head.parameters(), strict=True):
            teacher.lerp_(student.detach(), 1 - self.teacher_momentum)


def build_encoder(cfg: Config) -> VisionTransformer:
    """The timm ViT named by the config, randomly initialised, for any image size, its position embedding frozen.

    Raises:
        ValueError: For an unknown timm name, or a backbone that is not a ViT with a class token.
    """
    sizes = {
        "img_size": cfg.image_size,
        "patch_size": cfg.patch_size,
        "embed_dim": cfg.embed_dim,
        "depth": cfg.depth,
        "num_heads": cfg.num_heads,
        "mlp_ratio": cfg.mlp_ratio,
    }
    sizes = {name: value for name, value in sizes.items() if value is not None}
    try:
        encoder = timm.create_model(cfg.backbone, num_classes=0, global_pool="token", dynamic_img_size=True, **sizes)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"backbone {cfg.backbone!r} can not be built as a ViT: {error}") from error
    if getattr(encoder, "cls_token", None) is None or not hasattr(encoder, "forward_intermediates"):
        raise ValueError(f"backbone {cfg.backbone!r} has no class token; ToCo's CTC needs a ViT that has one")
    if isinstance(encoder, VisionTransformer):
        encoder._pos_embed = types.MethodType(_add_positions, encoder)
        encoder.pos_embed_antialias = cfg.pos_embed_antialias
    if encoder.pos_embed is not None:
        encoder.pos_embed.requires_grad_(False)
    if cfg.anti_smoothing == "attn_scale":
        add_attn_scale(encoder)
    elif cfg.anti_smoothing == "feat_scale":
        add_feat_scale(encoder)
    return encoder


def image_statistics(encoder: nn.Module, normalisation: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (RGB, in 0..1) that images are normalised with.

    `imagenet` is what the released code always uses; `backbone` is what the backbone's weights were made with.
    """
    if normalisation == "imagenet":
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return tuple(encoder.pretrained_cfg["mean"]), tuple(encoder.pretrained_cfg["std"])


def _add_positions(encoder: VisionTransformer, patches: Tensor) -> Tensor:
    """timm's `_pos_embed` with a choice of antialiasing: the reference resamples bicubically without, timm always with.

    Args:
        patches: Patch embeddings, (B, h, w, D).

    Returns:
        Prefix tokens and patches with their positions, (B, prefix + h*w, D).
    """
    batch, height, width, dim = patches.shape
    prefix = [getattr(encoder, name, None) for name in ("cls_token", "dist_token", "reg_token")]
    prefix = torch.cat([token.expand(batch, -1, -1) for token in prefix if token is not None], dim=1)
    placed = 0 if encoder.no_embed_class else encoder.num_prefix_tokens  # prefix tokens that have a position
    grid = encoder.pos_embed[:, placed:].transpose(1, 2).unflatten(2, encoder.patch_embed.grid_size)
    if grid.shape[-2:] != (height, width):
        grid = F.interpolate(grid, (height, width), mode="bicubic", antialias=encoder.pos_embed_antialias)
    tokens = patches.reshape(batch, -1, dim) + grid.flatten(2).transpose(1, 2)
    if placed:
        prefix = prefix + encoder.pos_embed[:, :placed]
    return encoder.pos_drop(torch.cat([prefix, tokens], dim=1))
