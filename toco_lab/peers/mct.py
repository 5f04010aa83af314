"""MCTformer: one class token per class, whose attention is a localisation map of that class.

Sources: Xu et al., "Multi-class Token Transformer for Weakly Supervised Semantic Segmentation" (CVPR 2022), in its
version V2, and its successor MCTformer+ (arXiv 2308.03005). With C class tokens, row c of the attention says where
class c is; a class map of the patch tokens complements it, and the attention between patches smooths the product. All
of it is read from the raw output of the last block: there is no final norm.

| | V2 (`mct`) | MCTformer+ (`mct_plus`) |
|---|---|---|
| attention of the class tokens | sum of the last 3 blocks | mean of all blocks |
| fused | attention x patch CAM | square root of that |
| patch logits | mean of the class map | ranked pooling |
| losses | soft margin of class and patch logits | and contrast between the class tokens of each block |
| image logits | class logits | mean of class and patch logits |
| positions on another grid | the scale of (h + 0.1) / g, kept because the published numbers rest on it | by size |

`mct_maps` has the formulas, `class_tokens` the encoder, `affinity` the smoothing, and `head_weights` WeakTr's learned
weights in place of the sums (`mct_head_weights`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toco_lab.backbones.activations import attention_maps
from toco_lab.backbones.build import build_encoder
from toco_lab.backbones.interfaces import Encoder
from toco_lab.backbones.kinds import encoder_of, fill_patches
from toco_lab.backbones.pixels import check_images
from toco_lab.config import Config
from toco_lab.method.batch import Batch
from toco_lab.method.face import BringsLosses, Output
from toco_lab.method.losses import classification_loss
from toco_lab.method.step import StepOutput, weighted_terms
from toco_lab.peers.affinity import PatchAttention, WeightedPatchAttention
from toco_lab.peers.class_tokens import give_class_tokens
from toco_lab.peers.head_weights import HeadWeights, head_features, map_logits, rows_and_columns, weighted_mean
from toco_lab.peers.mct_maps import MctMaps, class_attention, class_contrast, class_logits, ranked_pooling
from toco_lab.words import counted

V2_LAYERS = 3  # blocks whose attention V2's scripts sum; MCTformer+ takes all
V2_EXCESS = 0.1  # of V2's positions, see `build.PlainViT.pos_embed_excess`


@dataclass(frozen=True)
class ClassTokens:
    """What one pass gives, no final norm.

    Attributes:
        after_block: Class tokens after each of the last blocks that were asked for, (K, B, C, D), fp32.
        patches: Patch tokens of the last block, (B, D, h, w), fp32.
        head_map: What they say of each class, (B, C, h, w).
    """

    after_block: Tensor
    patches: Tensor
    head_map: Tensor


@dataclass(frozen=True)
class MctFeatures:
    """A pass and all of its maps."""

    tokens: ClassTokens
    maps: MctMaps


class MCTformer(BringsLosses):
    """A ViT with C class tokens and a 3x3 convolution on its patch tokens; V2 or MCTformer+ by `cfg.method`.

    `cam` is the fused map spread by patch affinity, `cam_aux` the fused map before it; `maps` gives all four. There is
    no decoder.

    Raises:
        ValueError: If the encoder is no plain ViT with a class token and readable attention, or has fewer blocks than
            `cfg.mct_layers`.
    """

    maps_of_any_scale = True  # an attention of 1 / T times what a young classifier says

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self._cfg = cfg
        self.plus = cfg.method == "mct_plus"
        vit = give_class_tokens(self.encoder, cfg.num_classes, cfg.method)
        blocks = len(vit.blocks)
        if not self.plus:
            vit.pos_embed_excess = V2_EXCESS
        self.layers = cfg.mct_layers or (blocks if self.plus else min(V2_LAYERS, blocks))
        if self.layers > blocks:
            raise ValueError(f"mct_layers {self.layers} is more than the {counted(blocks, 'block')} of the backbone")
        self.contrast_layers = min(cfg.mct_contrast_layers, blocks)
        self.decay = cfg.mct_decay
        self.classifier = nn.Conv2d(self.encoder.num_features, cfg.num_classes, 3, padding=1)
        self.head_weights: HeadWeights | None = None
        if cfg.mct_head_weights:
            heads = vit.blocks[0].attn.num_heads
            self.head_weights = HeadWeights(blocks * heads, vit.blocks[0].attn.proj.in_features // heads)
        self.train()

    def load_pretrained(self, load: Callable[[Encoder], None]) -> None:
        """Pretrained weights of a ViT with one class token, which is copied for each class."""
        plain = build_encoder(self._cfg)
        load(plain)
        self.encoder.load_state_dict(give_class_tokens(plain, self.num_classes, self._cfg.method).state_dict())

    def tokens(self, image: Tensor, *, blocks: int = 1) -> ClassTokens:
        """One pass over normalised images (B, 3, H, W); class tokens are kept after the last `blocks` blocks."""
        check_images(image)
        self.check_input(image)
        vit = encoder_of(self.encoder)
        image, grid = fill_patches(vit, image)
        with self.autocast(image.device):
            final, found = vit.forward_intermediates(
                image, indices=blocks, norm=False, output_fmt="NLC", return_prefix_tokens=True
            )
        patches = final.float()[:, self.num_prefix_tokens :].mT.unflatten(2, grid)
        after_block = torch.stack([prefix[:, : self.num_classes].float() for _, prefix in found])
        return ClassTokens(after_block, patches, self.classifier(patches))

    def encode(self, image: Tensor) -> MctFeatures:
        """One pass that also reads the attention of every block (two passes with head weights)."""
        if self.head_weights is not None:
            return self._encode_weighted(image, self.head_weights)
        reader = PatchAttention(self.num_prefix_tokens, self.num_classes)
        with attention_maps(self.encoder, reader) as rows:
            tokens = self.tokens(image)
        grid = (tokens.head_map.shape[-2], tokens.head_map.shape[-1])
        attention = class_attention(rows, grid, last=self.layers, mean=self.plus)
        return MctFeatures(tokens, MctMaps.of(attention, tokens.head_map, reader.affinity, geometric=self.plus))

    def cams(self, features: MctFeatures) -> tuple[Tensor, Tensor]:
        """Refined and fused map, (B, C, h, w) each, detached."""
        return features.maps.refined.detach(), features.maps.fused.detach()

    @torch.no_grad()
    def maps(self, image: Tensor) -> MctMaps:
        """All maps of normalised images (B, 3, H, W), at token resolution."""
        return self.encode(image).maps

    def forward(self, image: Tensor, *, segment: bool = True) -> Output:
        """Image logits and the features of the maps; there is nothing to segment with."""
        features = self.encode(image)
        logits = class_logits(features.tokens.after_block[-1])
        if self.plus:
            logits = (logits + self.patch_logits(features.tokens)) / 2
        return Output(logits=logits, features=features)

    def patch_logits(self, tokens: ClassTokens) -> Tensor:
        """Image logits of the patch tokens, (B, C)."""
        return ranked_pooling(tokens.head_map, self.decay) if self.plus else tokens.head_map.mean((2, 3))

    def losses(self, batch: Batch, cfg: Config, step: int, *, generator: torch.Generator | None = None) -> StepOutput:
        """Multi-label classification by class tokens and by patches; the contrast, or what teaches the head weights."""
        weights = {"cls": cfg.w_cls, "patch_cls": cfg.mct_patch_weight}
        losses = {}
        if self.head_weights is not None:
            tokens, on_map = self._map_logits(batch.image, self.head_weights)
            weights["map_cls"] = cfg.mct_map_weight
            losses["map_cls"] = classification_loss(on_map, batch.image_label)
        else:
            tokens = self.tokens(batch.image, blocks=self.contrast_layers if self.plus else 1)
        losses["cls"] = classification_loss(class_logits(tokens.after_block[-1]), batch.image_label)
        losses["patch_cls"] = classification_loss(self.patch_logits(tokens), batch.image_label)
        if self.plus:
            weights["cct"] = cfg.mct_contrast_weight
            losses["cct"] = class_contrast(tokens.after_block, batch.image_label)
        return StepOutput(weighted_terms(losses, weights))

    # --- WeakTr's head weights --------------------------------------------------------------------------------------

    def _read_heads(self, image: Tensor, head_weights: HeadWeights) -> tuple[ClassTokens, Tensor, Tensor]:
        """A pass; the weights of the heads, (B, K); and per head class rows and mean patch row, (B, K, C + 1, N)."""

        def read(attention: Tensor) -> Tensor:
            return rows_and_columns(attention, num_prefix=self.num_prefix_tokens, num_rows=self.num_classes)

        vit = encoder_of(self.encoder)
        with attention_maps(vit, read) as seen, head_features(vit) as features:
            tokens = self.tokens(image)
        return tokens, head_weights(torch.cat(features, dim=1)), torch.cat(seen, dim=1)

    def _map_logits(self, image: Tensor, head_weights: HeadWeights) -> tuple[ClassTokens, Tensor]:
        """A pass, and the logits (B, C) through which the weights of the heads learn; nothing else learns by them."""
        tokens, weights, seen = self._read_heads(image, head_weights)
        patch_cam = tokens.head_map.detach().relu().flatten(2)
        return tokens, map_logits(weights, seen[:, :, :-1], seen[:, :, -1], patch_cam)

    def _encode_weighted(self, image: Tensor, head_weights: HeadWeights) -> MctFeatures:
        """The first pass finds the weights of the heads, the second adds up the attention between patches by them."""
        tokens, weights, seen = self._read_heads(image, head_weights)
        attention = weighted_mean(weights, seen[:, :, :-1]).unflatten(2, tokens.head_map.shape[-2:])
        reader = WeightedPatchAttention(self.num_prefix_tokens, weights)
        with torch.no_grad(), attention_maps(self.encoder, reader):
            self.tokens(image)
        return MctFeatures(tokens, MctMaps.of(attention, tokens.head_map, reader.affinity, geometric=False))
