"""How many tokens an encoder should see at once where no gradient is wanted: passes over one batch in pieces.

    python benchmarks/pieces.py                         # DeiT-tiny and ViT-B at the largest scale of their CAMs

The batch is what a training step gives to its pass at scale 1.5: images and mirror images. All piece sizes take turns
in one process with one thread, fp32. `model.PIECE_TOKENS` is chosen by this; a GPU takes all at once. Writes
benchmarks/results/pieces.csv and .md.
"""

from collections.abc import Iterable

import pandas as pd
import timm
import torch
from measure import markdown_table, origin, origin_lines, parser_of, ratio, rounds, write
from torch import nn
from tqdm import tqdm

SETTINGS = {"deit_tiny": ("deit_tiny_patch16_224", 336, 8), "vit_b": ("vit_base_patch16_224", 672, 4)}
PATCH = 16


@torch.no_grad()
def measure(name: str, side: int, images: int, repeats: int, bar: tqdm) -> pd.DataFrame:
    """A row per piece size: images and tokens at once, seconds of the batch, ratio to all at once."""
    torch.manual_seed(0)
    encoder = timm.create_model(name, dynamic_img_size=True, num_classes=0).eval()
    batch = torch.randn(images, 3, side, side)
    sizes = [images // 2**k for k in range(images.bit_length())]
    seconds = rounds({size: lambda size=size: _passes(encoder, batch, size) for size in sizes}, repeats, bar.update)
    rows = [
        {"at_once": size, "tokens": size * (side // PATCH) ** 2, "seconds": seconds[size].median(),
         "to_all": ratio(seconds, size, images)}
        for size in sizes
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(backbone=name, side=side, images=images)


def _passes(encoder: nn.Module, batch: torch.Tensor, size: int) -> None:
    for piece in batch.split(size):
        encoder.forward_features(piece)


def markdown(table: pd.DataFrame) -> str:
    """One table."""
    about = table.iloc[0]
    lines = [
        "Passes without gradient in pieces. Processor seconds, one thread, fp32; medians over",
        f"{about['repeats']} rounds, of ratios too.",
        "",
    ]
    cells = [
        [f"{row.backbone}, {row.images} images of {row.side}", f"{row.at_once}", f"{row.tokens}", f"{row.seconds:.3f}",
         f"{row.to_all:.2f}"]
        for row in table.itertuples()
    ]  # fmt: skip
    lines += markdown_table(["batch", "images at once", "tokens", "seconds", "x all at once"], cells)
    return "\n".join([*lines, *origin_lines(about), ""])


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure, print and write."""
    parser = parser_of(__doc__, repeats=3)
    parser.add_argument("settings", nargs="*", metavar="SETTING", help=f"all by default: {', '.join(SETTINGS)}")
    args = parser.parse_args(arguments)
    if unknown := set(args.settings) - set(SETTINGS):
        parser.error(f"no setting {', '.join(sorted(unknown))}; there are: {', '.join(SETTINGS)}")
    torch.set_num_threads(1)
    about = origin(__file__, arguments)
    with tqdm(unit="batch") as bar:
        tables = [measure(*SETTINGS[name], args.repeats, bar) for name in args.settings or SETTINGS]
    table = pd.concat(tables, ignore_index=True).assign(repeats=args.repeats, **about).round(4)
    text = markdown(table)
    write(args.out / "pieces.csv", table, text)
    print(text)


if __name__ == "__main__":
    main()
