"""How many tokens an encoder should see at once where no gradient is wanted: passes over one batch in pieces.

The batch is what a training step gives to its pass at scale 1.5: images and mirror images. All piece sizes take turns
in one process with one thread, fp32. `PIECE_TOKENS` of `toco_lab.backbones.pixels` is chosen by this; a GPU takes all
at once.
"""

import pandas as pd
import timm
import torch
from torch import nn

from benchmarks.measure import ratio, rounds
from benchmarks.run import Case, markdown_table

PATCH = 16
SETTINGS = {  # timm's name, side of the images, how many
    "deit_tiny": ("deit_tiny_patch16_224", 336, 8),
    "vit_b": ("vit_base_patch16_224", 672, 4),
}


@torch.no_grad()
def measure(setting: tuple[str, int, int], repeats: int) -> pd.DataFrame:
    """A row per piece size: images and tokens at once, seconds of the batch, ratio to all at once."""
    name, side, images = setting
    torch.manual_seed(0)
    encoder = timm.create_model(name, dynamic_img_size=True, num_classes=0).eval()
    batch = torch.randn(images, 3, side, side)
    sizes = [images // 2**k for k in range(images.bit_length())]
    seconds = rounds({size: lambda size=size: _passes(encoder, batch, size) for size in sizes}, repeats)
    rows = [
        {"at_once": size, "tokens": size * (side // PATCH) ** 2, "seconds": seconds[size].median(),
         "to_all": ratio(seconds, size, images)}
        for size in sizes
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(backbone=name, side=side, images=images)


def _passes(encoder: nn.Module, batch: torch.Tensor, size: int) -> None:
    for piece in batch.split(size):
        encoder.forward_features(piece)


def section(rows: pd.DataFrame) -> list[str]:
    """One table."""
    cells = [
        [f"{row.backbone}, {row.images} images of {row.side}", row.at_once, row.tokens, f"{row.seconds:.3f}",
         f"{row.to_all:.2f}"]
        for row in rows.itertuples()
    ]  # fmt: skip
    return markdown_table(["batch", "images at once", "tokens", "seconds", "x all at once"], cells)


CASE = Case(
    about="Passes without gradient in pieces. Processor seconds, one thread, fp32; medians over rounds, of ratios too.",
    settings=SETTINGS, measure=measure, section=section, default=("deit_tiny",),
)  # fmt: skip
