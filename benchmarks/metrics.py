"""What all over-smoothing metrics of an image cost beside one forward pass of the same ViT, and which costs most.

    python benchmarks/metrics.py                        # DeiT-tiny at 224 pixels, the toy ViT
    python benchmarks/metrics.py vit_b_448 --repeats 1

Measured is `smoothing.smoothing_per_layer` on a few images with labels: all metrics in all variants, after every block
and after the final norm. It takes turns with timm's plain forward pass of each image, without the attention maps that
the metrics need. By part, on one image: reading all layers with their attention, then each metric of
`token_metrics.METRICS`, twice. *In order* is its part of the whole: what several share (cosines, singular values)
counts for the first that asks. *Alone* is what it would cost if no other were asked for. Of RankMe, which pools the
images, both have what an image adds; its eigenvalues come once for all. Random weights, one thread, processor seconds.
Writes benchmarks/results/metrics.csv and .md; settings that are not asked for keep the rows they have there.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pandas as pd
import timm
import torch
from measure import markdown_table, merged, origin, origin_lines, parser_of, ratio, rounds, write
from torch import Tensor, nn
from tqdm import tqdm

from toco_lab.config import Config
from toco_lab.data.toy import make_scene
from toco_lab.method.model import ToCo
from toco_lab.smoothing.catalogue import METRICS
from toco_lab.smoothing.formulas import RankMe
from toco_lab.smoothing.per_layer import RANK_ME, Layer, layers_of, smoothing_per_layer
from toco_lab.smoothing.view import TokenView

SETTINGS: dict[str, tuple[str, int]] = {  # timm's name, or a preset's, and the side of the image
    "toy": ("toy", 96),
    "deit_tiny": ("deit_tiny_patch16_224", 224),
    "vit_b": ("vit_base_patch16_224", 224),
    "vit_b_448": ("vit_base_patch16_224", 448),
}
DEFAULT = ("toy", "deit_tiny")
FORWARD, WHOLE, READING = "forward pass", "all metrics", "reading the layers"


def make_subject(setting: str, num_images: int) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
    """A ViT with random weights, scenes (3, H, W), normalised, and their labels (H, W)."""
    name, side = SETTINGS[setting]
    torch.manual_seed(0)
    if name.endswith("_224"):
        encoder = timm.create_model(name, pretrained=False, dynamic_img_size=True, num_classes=0)
    else:
        encoder = ToCo(Config.preset(name)).encoder
    scenes = [make_scene(0, index, size=side) for index in range(num_images)]
    images = [torch.from_numpy(scene.image).permute(2, 0, 1).float() / 127.5 - 1 for scene in scenes]
    return encoder.eval(), images, [torch.from_numpy(scene.mask).long() for scene in scenes]


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


def measure(setting: str, repeats: int, num_images: int, advance: Callable[[], Any] = lambda: None) -> pd.DataFrame:
    """Rows of kind `whole`, the calls, and `metric`, each metric: seconds an image, and as forward passes.

    Those of kind `metric` also have alone_seconds, alone_to_forward and share, of all metrics in order.
    """
    encoder, images, labels = make_subject(setting, num_images)
    seconds, each = rounds(make_calls(encoder, images, labels), repeats, advance) / num_images, []
    for _ in range(repeats):
        each.append(metric_seconds(read(encoder, images[0], labels[0])))
        advance()
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
    return pd.concat([pd.DataFrame(whole), table], ignore_index=True).assign(setting=setting)


def describe(setting: str) -> str:
    """What the cost depends on."""
    name, side = SETTINGS[setting]
    return f"{f'preset {name}' if name == setting else name}, {side} px, random weights"


def markdown(table: pd.DataFrame, most: int = 12) -> str:
    """A section per setting: the whole, then the metrics that cost most."""
    lines = [
        "All over-smoothing metrics of an image, after every block and the final norm, against one forward pass of",
        "the same ViT. Processor seconds, one thread, medians; ratios are medians over rounds.",
    ]
    for setting, rows in table.groupby("setting", sort=False):
        about = rows.iloc[0]
        lines += [
            "",
            f"## {setting}",
            "",
            f"{about['sizes']}. {about['images']:.0f} images, {about['repeats']:.0f} rounds.",
            "",
        ]
        whole, each = (rows[rows["kind"] == kind] for kind in ("whole", "metric"))
        cells = [[row.metric, f"{row.seconds:.3f}", f"{row.to_forward:.2f}"] for row in whole.itertuples()]
        lines += markdown_table(["", "seconds", "forward passes"], cells)
        lines += ["", f"The {most} metrics of {len(each)} that cost most:", ""]
        cells = [
            [f"{row.metric}, {row.variant}", f"{row.share:.0%}", f"{row.to_forward:.2f}", f"{row.alone_to_forward:.2f}"]
            for row in each.nlargest(most, "seconds").itertuples()
        ]
        lines += markdown_table(["", "share", "in order, forward passes", "alone"], cells)
        lines += origin_lines(about)
    return "\n".join([*lines, ""])


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure, print and write."""
    parser = parser_of(__doc__, repeats=5)
    parser.add_argument("settings", nargs="*", metavar="SETTING", help=f"{', '.join(SETTINGS)}; {' '.join(DEFAULT)}")
    parser.add_argument("--images", type=int, default=16, help="images in a row (16)")
    args = parser.parse_args(arguments)
    if unknown := set(args.settings) - set(SETTINGS):
        parser.error(f"no setting {', '.join(sorted(unknown))}; there are: {', '.join(SETTINGS)}")
    torch.set_num_threads(1)
    about, tables = origin(__file__, arguments), []
    with tqdm(unit="call") as bar:
        for setting in args.settings or DEFAULT:
            bar.set_description(setting)
            tables.append(measure(setting, args.repeats, args.images, bar.update).assign(sizes=describe(setting)))
    table, path = (
        pd.concat(tables).assign(images=args.images, repeats=args.repeats, **about).round(5),
        args.out / "metrics.csv",
    )
    table = merged(path, table, "setting", SETTINGS)
    text = markdown(table)
    write(path, table, text)
    print(text)


if __name__ == "__main__":
    main()
