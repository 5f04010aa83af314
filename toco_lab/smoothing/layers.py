"""The tokens of a model at every layer and site, as views on which metrics are computed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toco_lab.backbones.activations import Activations, capture
from toco_lab.backbones.kinds import any_encoder_of, fill_patches, has_class_token
from toco_lab.backbones.pixels import check_normalised
from toco_lab.progress import progress_bar
from toco_lab.smoothing.formulas import layer_cka
from toco_lab.smoothing.grid import majority_label
from toco_lab.smoothing.token_view import TokenView
from toco_lab.vocabulary import AFTER_ATTENTION, AFTER_BLOCK, EMBEDDING, FINAL_NORM, NO_NORM

DEFAULT_SITES = (AFTER_BLOCK, FINAL_NORM)


@dataclass(frozen=True)
class Layer:
    """The tokens of one layer at one site.

    Attributes:
        site: Among `vocabulary.SITES`.
        norm: Class of the norm that was applied; "none" in the residual stream.
        number: 0 for the patch embedding, k for block k; the final norm has the number of the last block.
        view: The tokens, and what metrics need beside them.
    """

    site: str
    norm: str
    number: int
    view: TokenView


def layers_of(
    model: nn.Module,
    image: Tensor,
    label: Tensor | None = None,
    *,
    sites: Sequence[str] = DEFAULT_SITES,
    attention: bool = False,
) -> Iterator[Layer]:
    """The tokens of some images at every layer and site, from one pass.

    Args:
        model: A timm model that `backbones.kinds` can read, or a model that carries one as `.encoder`.
        image: Normalised, (B, 3, H, W).
        label: Pixel labels, (B, H, W), or None; each token takes the majority of its pixels.
        sites: Among `vocabulary.SITES`.
        attention: Give the view after each block the attention of that block and of the block before.

    Yields:
        Layers in the order in which a token meets them.

    Raises:
        ValueError: If label and image differ in size, or the model or image cannot be read.
    """
    encoder = any_encoder_of(model)
    seen = capture(encoder, image, attention=attention, after_attention=AFTER_ATTENTION in sites)
    views = _Views(encoder, seen, image, label)
    if EMBEDDING in sites and seen.embedding is not None:
        yield Layer(EMBEDDING, NO_NORM, 0, views.of(seen.embedding, seen.grid))
    for number in range(1, len(seen.after_block) + 1):
        if AFTER_ATTENTION in sites:
            yield Layer(AFTER_ATTENTION, NO_NORM, number, views.of(seen.after_attention[number - 1], seen.grid))
        if AFTER_BLOCK in sites:
            yield Layer(AFTER_BLOCK, NO_NORM, number, views.after_block(number))
    if FINAL_NORM in sites:
        yield Layer(FINAL_NORM, seen.norm, len(seen.after_block), views.of(seen.final, seen.grid))


class _Views:
    """Makes the views of one pass."""

    def __init__(self, encoder: nn.Module, seen: Activations, image: Tensor, label: Tensor | None) -> None:
        """Reduces the pixel labels to the grids of the pass."""
        self._seen = seen
        self._has_class_token = has_class_token(encoder)
        # one tensor per block: `stack_layers` knows by identity that a layer follows another
        self._blocks = [seen.patches(tokens) for tokens in seen.after_block]
        height = fill_patches(encoder, image)[0].shape[-2]
        self._patch_sizes = {grid: height // grid[0] for grid in (seen.grid, *seen.block_grids)}
        if label is None:
            self._labels: dict[tuple[int, int], Tensor] = {}
            return
        if label.shape[-2:] != image.shape[-2:]:
            raise ValueError(f"label {tuple(label.shape[-2:])} and image {tuple(image.shape[-2:])} differ in size")
        filled = fill_patches(encoder, label)[0]
        self._labels = {grid: majority_label(filled, side).flatten(1) for grid, side in self._patch_sizes.items()}

    def of(self, tokens: Tensor, grid: tuple[int, int], patches: Tensor | None = None) -> TokenView:
        """The view of tokens (B, P + N, D); `patches` are their patch tokens, where they have been taken already."""
        seen = self._seen
        return TokenView(
            seen.patches(tokens) if patches is None else patches,
            grid,
            self._labels.get(grid),
            class_token=seen.class_token(tokens) if self._has_class_token else None,
            embedding=seen.patch_embedding,
            num_prefix=seen.num_prefix,
            patch_size=self._patch_sizes[grid],
        )

    def after_block(self, number: int) -> TokenView:
        """The view after block `number` (from 1), with its attention, and tokens and attention of the block before."""
        seen, index = self._seen, number - 1
        view = self.of(seen.after_block[index], seen.block_grids[index], self._blocks[index])
        attention = seen.attention[index].float() if seen.attention else None  # half precision cannot add up rows
        if index == 0:
            return replace(view, attention=attention)
        before = self._blocks[index - 1]
        return replace(
            view,
            attention=attention,
            previous_attention=seen.attention[index - 1].float() if seen.attention else None,
            # the first block of a new stage has tokens of another grid and width
            previous_tokens=before if before.shape == self._blocks[index].shape else None,
        )


def layer_similarity(model: nn.Module, images: Iterable[Tensor], *, progress: bool = False) -> pd.DataFrame:
    """Linear CKA between every two blocks, centred over the tokens of an image, mean over images.

    CKA compares the same places in both blocks, so the finer grids of a model in stages are averaged down to the final
    one.

    Args:
        model: A timm model that `backbones.kinds` can read, or a model that carries one as `.encoder`.
        images: Normalised images, (3, H, W) each.
        progress: Show a progress bar.

    Returns:
        Square table with blocks 1..L as index and columns, values in [0, 1]. Bright squares along the diagonal are runs
        of blocks that change little (Kornblith et al. 2019; Raghu et al. 2021 for ViTs).

    Raises:
        ValueError: If there are no images, or one is not of floats or holds NaN.
    """
    encoder = any_encoder_of(model)
    device, matrices = next(encoder.parameters()).device, []
    for number, image in enumerate(progress_bar(images, "similarity of layers", shown=progress)):
        check_normalised(image, f"image {number}")
        tokens = _on_final_grid(capture(encoder, image[None].to(device)))
        matrices.append(layer_cka(tokens)[0].cpu())
    if not matrices:
        raise ValueError("no images to compare layers on")
    mean = torch.stack(matrices).mean(0)
    names = pd.RangeIndex(1, len(mean) + 1, name="block")
    return pd.DataFrame(mean.numpy(), names, names)


def _on_final_grid(seen: Activations) -> list[Tensor]:
    """Patch tokens after every block, (B, N, D) with the D of the block, on the grid of the final tokens."""
    layers = []
    for block, grid in zip(seen.after_block, seen.block_grids, strict=True):
        tokens = seen.patches(block)
        if grid != seen.grid:
            tokens = F.adaptive_avg_pool2d(tokens.mT.unflatten(2, grid), seen.grid).flatten(2).mT
        layers.append(tokens)
    return layers
