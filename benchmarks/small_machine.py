"""What makes an encoder's training step cheaper on a CPU: bf16, and first blocks that do not learn.

Forward and backward of timm's ViT on one batch; all variants take turns in one process with one thread. Whether bf16
pays is a matter of the processor: some have units for it, others take longer than in fp32. `train --dry-run` and
`new-project` measure it (`toco_lab.training.timing.bf16_gain`).
"""

import pandas as pd
import timm
import torch
from torch import nn

from benchmarks.measure import ratio, rounds
from benchmarks.run import Case, markdown_table
from toco_lab.backbones.build import freeze_blocks

WHOLE = ("fp32", 0)  # what the others are compared with
SETTINGS = {  # timm's name, side of the crops, how many, blocks that are frozen
    "vit_s": ("vit_small_patch16_224", 112, 8, (0, 4, 8)),
    "vit_b": ("vit_base_patch16_224", 112, 8, (0, 4, 8)),
}


def measure(setting: tuple[str, int, int, tuple[int, ...]], repeats: int) -> pd.DataFrame:
    """A row per precision and number of frozen blocks: seconds of a step, ratio to fp32 with all blocks."""
    name, side, images, frozen = setting
    torch.manual_seed(0)
    batch = torch.randn(images, 3, side, side)
    encoders = {count: timm.create_model(name, dynamic_img_size=True, num_classes=0).train() for count in frozen}
    for count, encoder in encoders.items():
        freeze_blocks(encoder, count)
    variants = [(precision, count) for precision in ("fp32", "bf16") for count in frozen]
    calls = {one: lambda one=one: _step(encoders[one[1]], batch, is_half=one[0] == "bf16") for one in variants}
    seconds = rounds(calls, repeats)
    rows = [
        {"precision": one[0], "frozen_blocks": one[1], "seconds": seconds[one].median(),
         "to_whole": ratio(seconds, one, WHOLE)}
        for one in variants
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(backbone=name, side=side, images=images)


def _step(encoder: nn.Module, batch: torch.Tensor, *, is_half: bool) -> None:
    encoder.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
        tokens = encoder.forward_features(batch)
    tokens.float().square().mean().backward()


def section(rows: pd.DataFrame) -> list[str]:
    """One table."""
    cells = [
        [f"{row.backbone}, {row.images} crops of {row.side}", row.precision, row.frozen_blocks, f"{row.seconds:.2f}",
         f"{row.to_whole:.2f}"]
        for row in rows.itertuples()
    ]  # fmt: skip
    return markdown_table(["batch", "precision", "frozen blocks", "seconds", "x fp32, all blocks"], cells)


CASE = Case(
    about="Forward and backward of an encoder. Processor seconds, one thread; medians over rounds, of ratios too.",
    settings=SETTINGS, measure=measure, section=section,
)  # fmt: skip
