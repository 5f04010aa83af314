"""Pretrained weights for the toy world: a small ViT that learns to name the one object of a scene, as on ImageNet.

python -m toco_lab.data.toy_backbone            # two minutes on two cores; writes data/toy/vit_toy.safetensors
python -m toco_lab.data.toy_backbone --depth 4 --embed-dim 64 --out results/backbones/vit_toy_depth4.safetensors
"""

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from toco_lab.data.toy import PRETRAIN_SEED, PRETRAIN_VAL_SEED, TOY_CLASSES, make_scene
from toco_lab.files import atomic_write
from toco_lab.progress import progress_bar

PATCH = 8
GRID = 12  # position grid of the file, for scenes of 96 pixels


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the weights are made; kept in the file's metadata.

    Attributes:
        steps, batch_size, learning_rate, weight_decay: AdamW, warm-up over 100 steps, cosine decay.
        seed: Of initial weights and patch masks; each scene of the stream `PRETRAIN_SEED` is shown once.
        size: Side of a scene in pixels.
        embed_dim, depth, num_heads: The network, as the `toy` preset has it.
        aux_layer: Block that is kept local (python index).
        mask_share: Share of patches hidden at the input.
        mix_share: Share of batches in which two scenes are joined along a straight edge (CutMix).
        class_weight: Weight of naming the object from the class token.
        token_weight: Weight of naming the object from every final patch token, wherever it lies: this over-smooths.
        pooled_weight: Weight of naming it from the maximum over final tokens, ToCo's own pooling: object tokens lead.
        pixels_weight: Weight of reconstructing the pixels from the final block; from block `aux_layer` it is 1.
    """

    steps: int = 350
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    seed: int = 0
    size: int = 64
    embed_dim: int = 64
    depth: int = 8
    num_heads: int = 2
    aux_layer: int = -3
    mask_share: float = 0.3
    mix_share: float = 0.6
    class_weight: float = 1.0
    token_weight: float = 1.0
    pooled_weight: float = 1.0
    pixels_weight: float = 0.2


@dataclass(frozen=True)
class Part:
    """One of the scenes in a mixed image: its share of the area, its labels (B,), and where it lies, (tokens,) bool."""

    share: float
    label: Tensor
    region: Tensor


class Pretrainer(nn.Module):
    """The ViT with the heads that pretraining needs and ToCo does not."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        width, classes, pixels = recipe.embed_dim, len(TOY_CLASSES), 3 * PATCH * PATCH
        vit = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=recipe.size,
            patch_size=PATCH,
            embed_dim=width,
            depth=recipe.depth,
            num_heads=recipe.num_heads,
            num_classes=0,
        )
        assert isinstance(vit, VisionTransformer)
        self.vit = vit
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.class_head, self.token_head = nn.Linear(width, classes), nn.Linear(width, classes)
        self.pooled_head, self.aux_head = nn.Linear(width, classes, bias=False), nn.Linear(width, classes, bias=False)
        self.pixels_head, self.aux_pixels_head = nn.Linear(width, pixels), nn.Linear(width, pixels)

    def encode(self, image: Tensor, mask_share: float) -> tuple[Tensor, Tensor]:
        """Tokens of images (B, 3, H, W) of whose patches the share `mask_share` is hidden.

        Returns:
            Final normed tokens (B, 1 + n, D), and raw patch tokens (B, n, D) of block `aux_layer`.
        """
        patches = self.vit.patch_embed(image)
        hidden = torch.rand(patches.shape[:2])[..., None] < mask_share
        tokens, outputs = self.vit._pos_embed(torch.where(hidden, self.mask_token, patches)), []
        for block in self.vit.blocks:
            tokens = block(tokens)
            outputs.append(tokens)
        return self.vit.norm(tokens), outputs[self.recipe.aux_layer][:, 1:]

    def loss(self, image: Tensor, parts: list[Part]) -> Tensor:
        """Sum of the losses of `Recipe`, and cross entropy of the class token and of each region at `aux_layer`.

        Args:
            image: (B, 3, H, W) normalised.
            parts: What the images are made of.

        Returns:
            A scalar.
        """
        recipe = self.recipe
        final, local = self.encode(image, recipe.mask_share)
        named, every = self.class_head(final[:, 0]), self.token_head(final[:, 1:])  # (B, C), (B, n, C)
        pooled = self.pooled_head(final[:, 1:].amax(1))
        target = F.unfold(image, PATCH, stride=PATCH).transpose(1, 2)  # (B, n, pixels of a patch)
        loss = F.mse_loss(self.aux_pixels_head(F.layer_norm(local, local.shape[-1:])), target)
        loss = loss + recipe.pixels_weight * F.mse_loss(self.pixels_head(final[:, 1:]), target)
        for part in parts:
            label = part.label
            everywhere = F.cross_entropy(every.transpose(1, 2), label[:, None].expand(every.shape[:2]))
            inside = F.cross_entropy(self.aux_head(local[:, part.region].mean(1)), label)
            loss = loss + part.share * (
                recipe.class_weight * F.cross_entropy(named, label) + recipe.token_weight * everywhere
                + recipe.pooled_weight * F.cross_entropy(pooled, label) + inside
            )  # fmt: skip
        return loss


def scenes(seed: int, first: int, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Normalised single-object scenes (B, 3, H, W) and their classes (B,), 0-based."""
    made = [make_scene(seed, first + i, size=size, single_object=True) for i in range(count)]
    pixels = torch.from_numpy(np.stack([scene.image for scene in made])).float() / 255
    label = torch.tensor([int(scene.mask.max()) - 1 for scene in made])
    mean, std = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
    return ((pixels - mean) / std).permute(0, 3, 1, 2), label


def mixed(image: Tensor, label: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, list[Part]]:
    """The batch as it is, or with probability `share` each image joined with another along a straight edge."""
    cells = image.shape[-1] // PATCH
    other = torch.zeros(cells, cells, dtype=torch.bool)
    if rng.random() >= share:
        return image, [Part(1.0, label, ~other.flatten())]
    other[int(rng.integers(2, cells - 1)) :] = True
    other = other if rng.random() < 0.5 else ~other
    other = other if rng.random() < 0.5 else other.T
    order = torch.from_numpy(rng.permutation(len(image)))
    image = torch.where(other.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1), image[order], image)
    area = other.float().mean().item()
    return image, [Part(1 - area, label, ~other.flatten()), Part(area, label[order], other.flatten())]


def pretrain(out: Path | str, recipe: Recipe | None = None) -> float:
    """Make the weights: a .safetensors file with timm's names, written whole or not at all. No mask is used.

    Returns:
        Accuracy of the class token on 500 held-out scenes, in [0, 1].
    """
    recipe = recipe or Recipe()
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    model = Pretrainer(recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    bar = progress_bar(range(recipe.steps), "pretrain", unit="step")
    for step in bar:
        warm, decay = min(1, (step + 1) / 100), 0.5 * (1 + np.cos(np.pi * step / recipe.steps))
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * warm * decay
        image, label = scenes(PRETRAIN_SEED, step * recipe.batch_size, recipe.batch_size, recipe.size)
        loss = model.loss(*mixed(image, label, recipe.mix_share, rng))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.2f}")
    with torch.no_grad():
        image, label = scenes(PRETRAIN_VAL_SEED, 0, 500, recipe.size)
        accuracy = (model.class_head(model.encode(image, 0.0)[0][:, 0]).argmax(1) == label).float().mean().item()
    cells = recipe.size // PATCH
    state = model.vit.state_dict()
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [GRID, GRID], [cells, cells])
    about = {"made_by": "python -m toco_lab.data.toy_backbone", "recipe": json.dumps(dataclasses.asdict(recipe)),
             "held_out_accuracy": f"{accuracy:.3f}", "torch": torch.__version__}  # fmt: skip
    with atomic_write(out) as file:
        file.write(safetensors.torch.save({name: value.contiguous() for name, value in state.items()}, about))
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the pretrained weights of the toy preset.")
    parser.add_argument("--out", type=Path, default=Path("data/toy/vit_toy.safetensors"))
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--depth", type=int, default=Recipe.depth, help="number of blocks")
    parser.add_argument("--embed-dim", type=int, default=Recipe.embed_dim, help="token width, a multiple of 32")
    for place, where in (
        ("class", "the class token"),
        ("token", "every patch"),
        ("pooled", "the maximum over patches"),
    ):
        default = getattr(Recipe, f"{place}_weight")
        parser.add_argument(f"--{place}-weight", type=float, default=default, help=f"of naming the object from {where}")
    arguments = parser.parse_args()
    if arguments.embed_dim % 32:
        parser.error(f"--embed-dim must be a multiple of 32 (a head's width), got {arguments.embed_dim}")
    size = {"depth": arguments.depth, "embed_dim": arguments.embed_dim, "num_heads": arguments.embed_dim // 32}
    names = {name: value for name, value in vars(arguments).items() if name.endswith("_weight")}
    reached = pretrain(arguments.out, Recipe(steps=arguments.steps, seed=arguments.seed, **size, **names))
    print(f"{arguments.out}: held-out accuracy {reached:.3f} on 500 single-object scenes")
