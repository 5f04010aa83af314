"""The network: an encoder, two classifiers, the LargeFOV decoder and the projection head with its EMA teacher.

The forward pass is described in `toco_lab.method`.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toco_lab.backbones.kinds import (
    any_encoder_of,
    block_widths,
    class_token_pass,
    fill_patches,
    is_plain_vit,
    stage_maps,
)
from toco_lab.backbones.pixels import check_images
from toco_lab.config import Config
from toco_lab.method.face import CamModel, Output


@dataclass(frozen=True)
class TokenFeatures:
    """Tokens of one encoder pass; h = H // token side, w = W // token side.

    In a model of stages (Swin, ResNet, ConvNeXt) a token is one position of a feature map, see
    `toco_lab.backbones.kinds`.

    Attributes:
        class_token: (B, D) after the final norm; the mean of the patch tokens if the encoder has no class token.
        patch_tokens: (B, D, h, w) after the final norm (a ResNet has none).
        aux_patch_tokens: (B, D', h', w'), raw output of block `aux_layer`, NOT normalised. In a plain ViT D', h' and w'
            are D, h and w; an earlier stage of another model has a finer grid and fewer channels.
    """

    class_token: Tensor
    patch_tokens: Tensor
    aux_patch_tokens: Tensor

    def detach(self) -> "TokenFeatures":
        """The same tokens, cut off from the graph."""
        return TokenFeatures(self.class_token.detach(), self.patch_tokens.detach(), self.aux_patch_tokens.detach())


@dataclass(frozen=True, kw_only=True)
class ToCoOutput(Output):
    """What one forward pass gives; `logits` and `seg_logits` as in `Output`.

    Attributes:
        features: The tokens from which the rest is computed.
        aux_logits: Image logits of the auxiliary classifier, (B, C).
        cam, cam_aux: Raw class activation maps, (B, C, h, w) and (B, C, h', w'), no ReLU, detached.
    """

    features: TokenFeatures
    aux_logits: Tensor
    cam: Tensor
    cam_aux: Tensor


class LargeFOVDecoder(nn.Module):
    """Two dilated 3x3 convolutions and a 1x1 one, ReLU between, no biases."""

    def __init__(self, embed_dim: int, width: int, num_outputs: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(embed_dim, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.conv3 = nn.Conv2d(width, num_outputs, 1, bias=False)

    def forward(self, patch_tokens: Tensor) -> Tensor:
        """(B, D, h, w) -> logits (B, C + 1, h, w)."""
        logits = self.conv3(F.relu(self.conv2(F.relu(self.conv1(patch_tokens)))))
        return logits.contiguous()  # tokens come channels last, and every softmax of full-size logits would copy them


class ProjectionHead(nn.Module):
    """MLP with GELU, L2 normalisation, then a linear map with rows of unit length (weight norm, gain fixed at 1)."""

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


class ToCo(CamModel):
    """Encoder and heads, sized by the config. Weights are random; `initial_model` in training loads pretrained ones.

    Only the projection head has a teacher: both heads read the same encoder. The position embedding of a ViT is
    frozen. `patch_size` is the side of a final token in pixels.

    Args:
        cfg: Its backbone is built, with random weights, unless `encoder` is given.
        encoder: A network of your own, see `backbones.adapt`; it is not copied.
        classifier: A linear classifier of the final tokens, D to C = `cfg.num_classes`, whose CAMs are asked for. Its
            weights are copied; its bias, which is equal at all places, is left out.

    Raises:
        ValueError: If timm cannot make the backbone, if it is of a family that is not read here, if `aux_layer` names
            no block, or if the classifier does not fit.
    """

    decoder: LargeFOVDecoder

    def __init__(self, cfg: Config, *, encoder: nn.Module | None = None, classifier: nn.Linear | None = None) -> None:
        super().__init__(cfg, None if encoder is None else any_encoder_of(encoder))
        widths = block_widths(self.encoder)
        blocks = len(widths)
        if not -blocks <= cfg.aux_layer < blocks:
            raise ValueError(f"aux_layer {cfg.aux_layer} is not one of the {blocks} blocks of {cfg.backbone}")
        self.aux_index = cfg.aux_layer % blocks
        self.pooling = cfg.pooling
        width, head = self.encoder.num_features, (cfg.head_hidden, cfg.head_bottleneck, cfg.head_out)
        self.classifier = nn.Conv2d(width, cfg.num_classes, 1, bias=False)
        self.aux_classifier = nn.Conv2d(widths[self.aux_index], cfg.num_classes, 1, bias=False)
        if classifier is not None:
            self._take(classifier)
        self.decoder = LargeFOVDecoder(width, cfg.decoder_width, cfg.num_classes + 1, cfg.decoder_dilation)
        self.projection_head = ProjectionHead(width, *head)
        self.teacher_head = copy.deepcopy(self.projection_head).requires_grad_(False)
        self.teacher_momentum = cfg.teacher_momentum
        self.aux_is_final = self.aux_index == blocks - 1
        self.train()

    def _take(self, classifier: nn.Linear) -> None:
        """Copy a linear classifier of final tokens; ValueError if its shape is another one."""
        given, needed = tuple(classifier.weight.shape[:2]), tuple(self.classifier.weight.shape[:2])
        if given != needed:
            raise ValueError(
                f"classifier has weights {given}, needed are (num_classes of the config, channels of a token) {needed}"
            )
        with torch.no_grad():
            self.classifier.weight.copy_(classifier.weight.reshape(self.classifier.weight.shape))

    def encode(self, image: Tensor) -> TokenFeatures:
        """One encoder pass over normalised images (B, 3, H, W); `fill_patches` first brings them to whole tokens."""
        check_images(image)
        self.check_input(image)
        image, grid = fill_patches(self.encoder, image)
        with self.autocast(image.device):
            if is_plain_vit(self.encoder):
                tokens, (aux,) = self.encoder.forward_intermediates(
                    image, indices=[self.aux_index], norm=False, output_fmt="NCHW"
                )
            else:
                tokens, (aux,) = stage_maps(self.encoder, image, [self.aux_index])
        tokens, class_token = tokens.float(), None
        if tokens.ndim == 3:  # (B, P + N, D) of a plain ViT
            class_token = tokens[:, 0] if getattr(self.encoder, "cls_token", None) is not None else None
            tokens = tokens[:, self.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)  # (B, D, h, w)
        if class_token is None:
            class_token = tokens.mean((2, 3))
        if self.aux_is_final:
            aux = tokens  # the reference's list of blocks ends with the normalised one
        return TokenFeatures(class_token, tokens, aux.float())

    def encode_class_token(self, image: Tensor) -> Tensor:
        """The class token of `encode` alone, (B, D): the last block of a plain ViT then does a sixth of its work."""
        if getattr(self.encoder, "cls_token", None) is None or not is_plain_vit(self.encoder):
            return self.encode(image).class_token
        image, _ = fill_patches(self.encoder, image)
        with self.autocast(image.device):
            return class_token_pass(self.encoder, image).float()

    def cams(self, features: TokenFeatures) -> tuple[Tensor, Tensor]:
        """Raw CAMs of the final tokens, (B, C, h, w), and of the auxiliary ones, (B, C, h', w'), detached."""
        with torch.no_grad():
            return self.classifier(features.patch_tokens), self.aux_classifier(features.aux_patch_tokens)

    @torch.no_grad()
    def aux_maps(self, image: Tensor, wanted: Tensor | None = None) -> tuple[Tensor]:
        """Raw CAMs of the auxiliary tokens alone, (B, C, h, w): the pass of a plain ViT ends at their block."""
        if self.aux_is_final or not is_plain_vit(self.encoder):
            return super().aux_maps(image, wanted)
        check_images(image)
        self.check_input(image)
        image, _ = fill_patches(self.encoder, image)
        with self.autocast(image.device):
            (aux,) = self.encoder.forward_intermediates(
                image, indices=[self.aux_index], norm=False, output_fmt="NCHW", intermediates_only=True, stop_early=True
            )
        return (self.aux_classifier(aux.float()),)

    def read(self, features: TokenFeatures, *, segment: bool = True) -> ToCoOutput:
        """The heads applied to given tokens.

        Image logits come from tokens pooled over positions, channel by channel (in ToCo their maximum). With the
        pooling `max_and_class` the final ones come from the mean of that maximum and the class token, so that what
        shapes the class token reaches the weights that make the CAM.
        """
        cam, cam_aux = self.cams(features)
        final, aux = self.pooled(features)
        return ToCoOutput(
            features=features,
            logits=self.classifier(final).flatten(1),
            aux_logits=self.aux_classifier(aux).flatten(1),
            cam=cam,
            cam_aux=cam_aux,
            seg_logits=self.decoder(features.patch_tokens) if segment else None,
        )

    def pooled(self, features: TokenFeatures) -> tuple[Tensor, Tensor]:
        """What the final and the auxiliary classifier read of an image: (B, D, 1, 1) and (B, D', 1, 1)."""
        final, aux = (
            tokens.mean((2, 3), keepdim=True) if self.pooling == "average" else tokens.amax((2, 3), keepdim=True)
            for tokens in (features.patch_tokens, features.aux_patch_tokens)
        )
        return (final + features.class_token[:, :, None, None]) / 2 if self.pooling == "max_and_class" else final, aux

    def linear_heads(self, image: Tensor) -> list[tuple[nn.Conv2d, Tensor]]:
        """Both classifiers, and what they read of normalised images (B, 3, H, W)."""
        final, aux = self.pooled(self.encode(image))
        return [(self.classifier, final), (self.aux_classifier, aux)]

    def forward(self, image: Tensor, *, segment: bool = True) -> ToCoOutput:
        """Normalised images (B, 3, H, W) -> `ToCoOutput`. No state changes: only `update_teacher` moves the teacher."""
        return self.read(self.encode(image), segment=segment)

    @torch.no_grad()
    def update_teacher(self) -> None:
        """One EMA step of the teacher head: t <- m t + (1 - m) s. The released code does this before each forward."""
        for teacher, student in zip(self.teacher_head.parameters(), self.projection_head.parameters(), strict=True):
            teacher.lerp_(student.detach(), 1 - self.teacher_momentum)

    def head_parameters(self) -> list[nn.Parameter]:
        """The weights of both classifiers and of the projection head; the order is that of all checkpoints."""
        heads = (self.projection_head, self.classifier, self.aux_classifier)
        return [weight for head in heads for weight in head.parameters()]
