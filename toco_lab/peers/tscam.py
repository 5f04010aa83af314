"""TS-CAM: where the class token looks, times what the patches say of each class.

Source: Gao et al., "TS-CAM: Token Semantic Coupled Attention Map for Weakly Supervised Object Localization" (ICCV
2021). The class token's attention covers whole objects and knows no class; the class map of the patch tokens knows the
class and covers parts. Their product has both. The class token has no head and no loss: it learns only through the
patches that attend to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from toco_lab.backbones.activations import attention_maps
from toco_lab.backbones.kinds import fill_patches
from toco_lab.backbones.pixels import check_images
from toco_lab.config import Config
from toco_lab.method.batch import Batch
from toco_lab.method.face import BringsLosses, Output
from toco_lab.method.losses import classification_loss
from toco_lab.method.step import StepOutput, weighted_terms
from toco_lab.peers.vit import vit_with_class_token


def class_token_row(attention: Tensor) -> Tensor:
    """(B, H, T, T) -> (B, T): what the class token, the first one, attends to, mean over heads."""
    return attention[:, :, 0].float().mean(1)


def attention_map(rows: Sequence[Tensor], num_prefix: int, grid: tuple[int, int]) -> Tensor:
    """The class token's attention to the patches, summed over blocks, (B, h, w).

    Raw attention: no residual and no product of blocks, which would be rollout.

    Args:
        rows: `class_token_row` of every block, (B, T) each.
        num_prefix: Tokens before the patches.
        grid: Rows and columns (h, w) of the patches.
    """
    return reduce(torch.add, rows)[:, num_prefix:].unflatten(1, grid)


def coupled(attention: Tensor, semantic: Tensor) -> Tensor:
    """TS-CAM: attention map (B, h, w) times semantic map (B, C, h, w). No ReLU, nothing normalised."""
    return attention[:, None] * semantic


@dataclass(frozen=True)
class CoupledFeatures:
    """What one pass gives: `semantic` map (B, C, h, w), and the `attention` map of the class token, (B, h, w)."""

    semantic: Tensor
    attention: Tensor


class TSCAM(BringsLosses):
    """A ViT whose patch tokens are classified by a 3x3 convolution; image logits are the mean of its map.

    `cam` is the coupled map, `cam_aux` the semantic map alone. There is no decoder.

    Raises:
        ValueError: If the encoder is no plain ViT with a class token.
    """

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        vit_with_class_token(self.encoder, cfg.method)
        self.classifier = nn.Conv2d(self.encoder.num_features, cfg.num_classes, 3, padding=1)
        self.train()

    def semantic_map(self, image: Tensor) -> Tensor:
        """What the patches say of each class, (B, C, h, w), with gradient."""
        check_images(image)
        self.check_input(image)
        image, grid = fill_patches(self.encoder, image)
        with self.autocast(image.device):
            tokens = self.encoder.forward_features(image)
        patches = tokens.float()[:, self.num_prefix_tokens :]
        return self.classifier(patches.mT.unflatten(2, grid))

    def encode(self, image: Tensor) -> CoupledFeatures:
        """One pass that also reads the attention of the class token in every block."""
        with attention_maps(self.encoder, class_token_row) as rows:
            semantic = self.semantic_map(image)
        grid = (semantic.shape[-2], semantic.shape[-1])
        return CoupledFeatures(semantic, attention_map(rows, self.num_prefix_tokens, grid))

    def cams(self, features: CoupledFeatures) -> tuple[Tensor, Tensor]:
        """Coupled map and semantic map, (B, C, h, w) each, detached."""
        semantic = features.semantic.detach()
        return coupled(features.attention.detach(), semantic), semantic

    def forward(self, image: Tensor, *, segment: bool = True) -> Output:
        """Image logits and the features of the maps; there is nothing to segment with."""
        features = self.encode(image)
        return Output(logits=features.semantic.mean((2, 3)), features=features)

    def losses(self, batch: Batch, cfg: Config, step: int, *, generator: torch.Generator | None = None) -> StepOutput:
        """Multi-label classification (the paper has one label an image, and cross entropy)."""
        logits = self.semantic_map(batch.image).mean((2, 3))
        return StepOutput(weighted_terms({"cls": classification_loss(logits, batch.image_label)}, {"cls": cfg.w_cls}))
