"""What multi-scale CAMs and the evaluation of an image cost beside the bare encoder passes they need.

This measures `multi_scale_cam` after the forward pass whose logits are scored as well, for the two classes that are
there, as the evaluation calls it, and for all classes; and `predict`, for each target and for all at once. Weights are
random. The floor of each is timm's encoder on the same images and their mirror images at the same scales, in batches of
the same size; what two targets share is needed once. All take turns in one process with one thread. Memory is the peak
of a fresh process (Linux) that evaluates toy scenes of 192 pixels, and of one that evaluates four times as many.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from benchmarks.measure import CPU, clock_of, in_a_fresh_process, peak_megabytes_of, ratio, rounds
from benchmarks.run import Case, markdown_table
from toco_lab.backbones.kinds import encoder_of
from toco_lab.config import Config
from toco_lab.evaluation.evaluate import TARGETS, evaluate_model
from toco_lab.evaluation.prediction import predict
from toco_lab.method.cam import multi_scale_cam
from toco_lab.method.model import ToCo
from toco_lab.method.present import PresentClasses

MULTI_SCALE_CAM, ALL_CLASSES, EVERYTHING = "multi-scale CAM", "multi-scale CAM of all classes", "all targets"
MEMORY = "memory"  # the setting of the rows about it; its value is the number of images
TIMES_AS_MANY = 4  # images of the second memory measurement


@dataclass(frozen=True)
class Setting:
    """What is evaluated: a config, the native (H, W) of the images, images at once."""

    cfg: Config
    native: tuple[int, int]
    batch: int


VOC = Config.preset("voc_vit_b")
SETTINGS: dict[str, Any] = {
    "toy": Setting(Config.preset("toy"), (96, 96), 8),
    # half of VOC's usual 375 x 500 and of the 448 pixels of CAMs, in whole tokens at every scale
    "deit_tiny": Setting(VOC.replace(backbone="deit_tiny_patch16_224", eval_cam_size=224), (192, 256), 4),
    "vit_b": Setting(VOC, (384, 512), 1),
    MEMORY: 2_500,
}
Size = tuple[int, int]


# --- what is measured -------------------------------------------------------------------------------------------------


def cam_passes(setting: Setting) -> list[Size]:
    """Sizes the encoder sees for the CAMs; each runs mirrored, too."""
    edge = setting.cfg.eval_cam_size
    return _scaled((edge, edge) if edge else setting.native, setting.cfg.cam_scales)


def segmentation_passes(setting: Setting) -> list[Size]:
    """The same for the segmentation."""
    return _scaled(setting.native, setting.cfg.eval_seg_scales)


def _scaled(size: Size, scales: Sequence[float]) -> list[Size]:
    return [(int(scale * size[0]), int(scale * size[1])) for scale in scales]


def passes_of(setting: Setting, name: str) -> list[Size]:
    """Sizes that a measured thing cannot do without, each once."""
    cams = [] if name == "seg" else cam_passes(setting)
    return list(dict.fromkeys(cams + (segmentation_passes(setting) if name in ("seg", EVERYTHING) else [])))


def make_calls(setting: Setting, device: torch.device = CPU) -> dict[str, Callable[[], Any]]:
    """Everything that takes turns: each measured thing, and each floor under the name of its passes."""
    torch.manual_seed(0)
    cfg, model = setting.cfg, ToCo(setting.cfg).to(device).eval()
    encoder = encoder_of(model)
    image = torch.randn(setting.batch, 3, *setting.native, device=device)
    edge = cfg.eval_cam_size
    for_cams = torch.randn(setting.batch, 3, edge, edge, device=device) if edge else image
    label = torch.zeros(setting.batch, cfg.num_classes, device=device)
    label[:, :2] = 1  # few photographs show more

    @torch.no_grad()
    def evaluation(*targets: str) -> None:
        predict(model, cfg, image, label, targets)

    @torch.no_grad()
    def cams(image_label: Tensor) -> None:
        plain = model(for_cams, segment=False)
        present = PresentClasses.of(image_label)
        multi_scale_cam(model, for_cams, cfg.cam_scales, present=present, plain=plain.features)

    @torch.no_grad()
    def floor(pairs: Sequence[Tensor]) -> None:
        for pair in pairs:
            encoder.forward_features(pair)

    calls = {MULTI_SCALE_CAM: lambda: cams(label), ALL_CLASSES: lambda: cams(torch.ones_like(label))}
    calls |= {target: lambda target=target: evaluation(target) for target in TARGETS}
    calls[EVERYTHING] = lambda: evaluation(*TARGETS)
    for sizes in dict.fromkeys(tuple(passes_of(setting, name)) for name in calls):
        pairs = [torch.randn(2 * setting.batch, 3, *size, device=device) for size in sizes]
        calls[floor_name(sizes)] = lambda pairs=pairs: floor(pairs)
    return calls


def floor_name(sizes: Iterable[Size]) -> str:
    """Name of the encoder passes at some sizes."""
    return " + ".join(f"{height} x {width}" for height, width in sizes)


def measure(setting: Setting | int, repeats: int) -> pd.DataFrame:
    """Rows of `measure_time` or, of a number of images, `measure_memory`."""
    return measure_time(setting, repeats) if isinstance(setting, Setting) else measure_memory(setting)


def measure_time(setting: Setting, repeats: int, device: torch.device = CPU) -> pd.DataFrame:
    """A row per measured thing: seconds of a batch, images a second, the ratio to its floor."""
    seconds = rounds(make_calls(setting, device), repeats, clock_of(device))
    rows = []
    for name in (MULTI_SCALE_CAM, ALL_CLASSES, *TARGETS, EVERYTHING):
        floor = floor_name(passes_of(setting, name))
        spent = seconds[name].median()
        rows.append(
            {
                "what": name,
                "passes": floor,
                "seconds": spent,
                "floor_seconds": seconds[floor].median(),
                "images_per_second": setting.batch / spent,
                "to_floor": ratio(seconds, name, floor),
            }
        )
    return pd.DataFrame(rows).assign(sizes=describe(setting))


def peak_of_evaluation(count: int) -> float:
    """Peak memory in MB of this process over the evaluation of so many toy scenes.

    A sample that is kept would hold 0.2 MB. The toy reader keeps image and mask of up to 128 scenes, 0.04 MB each.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cfg = Config.preset("toy").replace(val_images=count)
    model = ToCo(cfg)
    return peak_megabytes_of(lambda: evaluate_model(model, cfg, targets=TARGETS, progress=False))[0]


def measure_memory(images: int) -> pd.DataFrame:
    """A row per number of images: peak, and its ratio to that of the fewer images."""
    rows = []
    for count in (images, TIMES_AS_MANY * images):
        peak = in_a_fresh_process(peak_of_evaluation, count)
        rows.append({"what": f"{count:,} images", "images": count, "peak_mb": peak})
    table = pd.DataFrame(rows).assign(sizes="Peak memory of an evaluation, toy scenes of 96 x 96 pixels, all targets")
    return table.assign(to_fewer=table["peak_mb"] / table["peak_mb"].iloc[0])


# --- tables -----------------------------------------------------------------------------------------------------------


def describe(setting: Setting) -> str:
    """Sizes that the cost depends on."""
    cfg, (height, width) = setting.cfg, setting.native
    cam_scales, seg_scales = (" ".join(f"{s:g}" for s in scales) for scales in (cfg.cam_scales, cfg.eval_seg_scales))
    return (
        f"{cfg.backbone.partition('.')[0]}{f' with {cfg.depth} blocks of {cfg.embed_dim}' if cfg.depth else ''}, "
        f"{cfg.num_classes} classes, batch {setting.batch}, images {height} x {width}; CAM at "
        f"{cfg.eval_cam_size or 'native size'}, scales {cam_scales}; segmentation scales {seg_scales}; all mirrored too"
    )


def section(rows: pd.DataFrame) -> list[str]:
    """What is measured, then times beside their floors, or memory."""
    if (rows["setting"] == MEMORY).all():
        cells = [[row.what, f"{row.peak_mb:.0f}", f"{row.to_fewer:.3f}"] for row in rows.itertuples()]
        table = markdown_table(["", "peak MB", "x the fewer images"], cells)
    else:
        cells = [
            [row.what, f"{row.seconds:.3f}", f"{row.images_per_second:.2f}", row.passes, f"{row.floor_seconds:.3f}",
             f"{row.to_floor:.2f}"]
            for row in rows.itertuples()
        ]  # fmt: skip
        table = markdown_table(["", "seconds", "images a second", "passes", "seconds of them", "x"], cells)
    return [f"{rows['sizes'].iloc[0]}.", "", *table]


CASE = Case(
    about="Inference against the encoder passes it needs. Processor seconds of a batch, one thread, fp32, medians;\n"
    "ratios are medians over rounds. `cam`, `cam_aux`, `cam_refined` and `seg` are targets of the evaluation; the\n"
    "first two come from the same passes.",
    settings=SETTINGS, measure=measure, section=section, default=("toy", "deit_tiny", MEMORY),
)  # fmt: skip
