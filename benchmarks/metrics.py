"""What all over-smoothing metrics of an image cost beside one forward pass of the same ViT, and which costs most.

This measures `smoothing_per_layer` on a few images with labels: all metrics in all variants, after every block and
after the final norm. It takes turns with timm's plain forward pass of each image, without the attention maps that the
metrics need. By part, on one image: reading all layers with their attention, then each metric of `METRICS`, twice. *In
order* is its part of the whole: what several share (cosines, singular values) counts for the first that asks. *Alone*
is what it would cost if no other were asked for. RankMe pools the images: both columns have what one image adds; its
eigenvalues come once for all. Random weights, one thread, processor seconds.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import timm
import torch
from torch import Tensor, nn

from benchmarks.measure import CPU, ratio, rounds
from benchmarks.run import Case, markdown_table
from toco_lab.config import Config
from toco_lab.data.toy import make_scene
from toco_lab.method.model import ToCo
from toco_lab.smoothing.catalogue import METRICS
from toco_lab.smoothing.formulas import RankMe
from toco_lab.smoothing.per_layer import RANK_ME, Layer, layers_of, smoothing_per_layer
from toco_lab.smoothing.token_view import TokenView


@dataclass(frozen=True)
class Setting:
    """timm's name of a ViT, or a preset's; the side of the images; how many take turns."""

    name: str
    side: int
    images: int = 16

    @property
    def sizes(self) -> str:
        """What the cost depends on."""
        preset = "" if self.name.endswith("_224") else "preset "
        return f"{preset}{self.name}, {self.side} px, random weights"


SETTINGS = {
    "toy": Setting("toy", 96),
    "deit_tiny": Setting("deit_tiny_patch16_224", 224),
    "vit_b": Setting("vit_base_patch16_224", 224),
    "vit_b_448": Setting("vit_base_patch16_224", 448, images=2),
}
FORWARD, WHOLE, READING = "forward pass", "all metrics", "reading the layers"


def make_subject(setting: Setting, device: torch.device = CPU) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
    """A ViT with random weights, scenes (3, H, W), normalised, and their labels (H, W)."""
    torch.manual_seed(0)
    if setting.name.endswith("_224"):
        encoder = timm.create_model(setting.name, pretrained=False, dynamic_img_size=True, num_classes=0)
    else:
        encoder = ToCo(Config.preset(setting.name)).encoder
    scenes = [make_scene(0, index, size=setting.side) for index in range(setting.images)]
    images = [torch.from_numpy(scene.image).permute(2, 0, 1).float().to(device) / 127.5 - 1 for scene in scenes]
    return encoder.to(device).eval(), images, [torch.from_numpy(scene.mask).long().to(device) for scene in scenes]


def make_calls(encoder: nn.Module, images: list[Tensor], labels: list[Tensor]) -> dict[str, Callable[[], Any]]:
    """What takes turns, each over all images."""

    @torch.no_grad()
    def forward() -> None:
        for image in images:
            encoder.forward_features(image[None])

    return {
        FORWARD: forward,
        WHOLE: lambda: smoothing_per_layer(encoder, images, labels, name="benchmark"),
        READING: lambda: [read(encoder, *pair) for pair in zip(images, labels, strict=True)],
    }


def read(encoder: nn.Module, image: Tensor, label: Tensor) -> list[Layer]:
    """All layers of one pass, as `smoothing_per_layer` reads them."""
    return list(layers_of(encoder, image[None], label[None], attention=True))


@torch.no_grad()
def metric_seconds(layers: Iterable[Layer]) -> pd.DataFrame:
    """Processor seconds of each metric over all layers: metric, variant, in_order and alone."""
    spent = {(key, how): 0.0 for key in (*METRICS, RANK_ME) for how in ("in_order", "alone")}
    for layer in layers:
        calls = {
            key: metric.function
            for key, metric in METRICS.items()
            if all(getattr(layer.view, need) is not None for need in metric.needs)
        }
        for key, function in (calls | {RANK_ME: rank_me}).items():
            for how, view in (("in_order", layer.view), ("alone", replace(layer.view))):  # a copy has nothing cached
                began = time.process_time()
                function(view)
                spent[key, how] += time.process_time() - began
    return pd.DataFrame(
        [(*key, spent[key, "in_order"], spent[key, "alone"]) for key in (*METRICS, RANK_ME)],
        columns=["metric", "variant", "in_order", "alone"],
    )


def rank_me(view: TokenView) -> None:
    """What an image adds to RankMe."""
    RankMe().update(view.tokens)


def measure(setting: Setting, repeats: int) -> pd.DataFrame:
    """Rows of kind `whole`, the calls, and `metric`, each metric: seconds an image, and as forward passes.

    Those of kind `metric` also have alone_seconds, alone_to_forward and share, of all metrics in order.
    """
    encoder, images, labels = make_subject(setting)
    seconds = rounds(make_calls(encoder, images, labels), repeats) / setting.images
    each = [metric_seconds(read(encoder, images[0], labels[0])) for _ in range(repeats)]
    one_pass = seconds[FORWARD].median()
    table = pd.concat(each).groupby(["metric", "variant"], sort=False).median().reset_index()
    whole = [
        {
            "kind": "whole",
            "metric": name,
            "seconds": seconds[name].median(),
            "to_forward": ratio(seconds, name, FORWARD),
        }
        for name in seconds
    ]
    table = table.assign(
        kind="metric", to_forward=table["in_order"] / one_pass, alone_to_forward=table["alone"] / one_pass,
        share=table["in_order"] / table["in_order"].sum(),
    ).rename(columns={"in_order": "seconds", "alone": "alone_seconds"})  # fmt: skip
    table = pd.concat([pd.DataFrame(whole), table], ignore_index=True)
    return table.assign(sizes=setting.sizes, images=setting.images)


def section(rows: pd.DataFrame, most: int = 12) -> list[str]:
    """The whole, then the metrics that cost most."""
    whole, each = (rows[rows["kind"] == kind] for kind in ("whole", "metric"))
    totals = [[row.metric, f"{row.seconds:.3f}", f"{row.to_forward:.2f}"] for row in whole.itertuples()]
    cells = [
        [f"{row.metric}, {row.variant}", f"{row.share:.0%}", f"{row.to_forward:.2f}", f"{row.alone_to_forward:.2f}"]
        for row in each.nlargest(most, "seconds").itertuples()
    ]
    return [
        f"{rows['sizes'].iloc[0]}. {rows['images'].iloc[0]:.0f} images.", "",
        *markdown_table(["", "seconds", "forward passes"], totals), "",
        f"The {most} metrics of {len(each)} that cost most:", "",
        *markdown_table(["", "share", "in order, forward passes", "alone"], cells),
    ]  # fmt: skip


CASE = Case(
    about="All over-smoothing metrics of an image, after every block and the final norm, against one forward pass of\n"
    "the same ViT. Processor seconds, one thread, medians; ratios are medians over rounds.",
    settings=SETTINGS, measure=measure, section=section, default=("toy", "deit_tiny"),
)  # fmt: skip
