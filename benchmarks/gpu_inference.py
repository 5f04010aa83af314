"""What CAMs, evaluation, the dense CRF and the over-smoothing metrics cost on a GPU, beside the passes they need.

The same calls as `inference`, `crf` and `metrics` make on the CPU, by the clock with the device finished before and
after. fp32 without TF32, random weights.
"""

from dataclasses import dataclass

import pandas as pd
import torch

from benchmarks import crf, inference, metrics
from benchmarks.measure import clock_of, ratio, rounds
from benchmarks.run import Case, markdown_table

CRF_POINT = (375, 500, 21)  # VOC's photographs


@dataclass(frozen=True)
class Setting:
    """What is measured: an evaluation, the CRF's (H, W, classes), a subject of the over-smoothing metrics."""

    evaluation: inference.Setting
    crf: tuple[int, int, int]
    smoothing: metrics.Setting


VIT_B = inference.SETTINGS["vit_b"]
SETTINGS = {"vit_b": Setting(VIT_B, CRF_POINT, metrics.Setting("vit_base_patch16_224", 448, images=4))}


def measure(setting: Setting, repeats: int) -> pd.DataFrame:
    """All rows, on this machine's GPU."""
    return measure_on(torch.device("cuda"), setting, repeats).assign(device=torch.cuda.get_device_name())


def measure_on(device: torch.device, setting: Setting, repeats: int) -> pd.DataFrame:
    """Rows of what, seconds, images a second, and the ratio to the passes needed (NaN for the CRF: it needs none)."""
    evaluation = inference.measure_time(setting.evaluation, repeats, device)
    evaluation = evaluation.assign(of=f"evaluation of {setting.evaluation.batch} images at once")

    height, width, classes = setting.crf
    point = crf.measure_points([setting.crf], repeats, device).iloc[0]
    parts = [{"what": name, "seconds": point[name], "images_per_second": 1 / point[name],
              "of": f"{height} x {width}, {classes} classes"} for name in (crf.BUILD, crf.FILTER, crf.CRF)]  # fmt: skip

    calls = metrics.make_calls(*metrics.make_subject(setting.smoothing, device))
    seconds = rounds(calls, repeats, clock_of(device)) / setting.smoothing.images
    smoothing = [{"what": name, "seconds": seconds[name].median(), "images_per_second": 1 / seconds[name].median(),
                  "to_floor": ratio(seconds, name, metrics.FORWARD), "of": setting.smoothing.sizes}
                 for name in calls]  # fmt: skip
    return pd.concat([evaluation, pd.DataFrame(parts + smoothing)], ignore_index=True)


def section(rows: pd.DataFrame) -> list[str]:
    """One table."""
    cells = [
        [row.what, row.of, f"{row.seconds:.4f}", f"{row.images_per_second:.1f}",
         "-" if pd.isna(row.to_floor) else f"{row.to_floor:.2f}"]
        for row in rows.itertuples()
    ]  # fmt: skip
    table = markdown_table(["", "of", "seconds", "images a second", "x the passes it needs"], cells)
    return [f"{rows['device'].iloc[0]}.", "", *table]


CASE = Case(
    about="Inference on a GPU. The clock's seconds, fp32, medians; ratios are medians over rounds.",
    settings=SETTINGS,
    measure=measure,
    section=section,
    repeats=10,
    missing=lambda: "" if torch.cuda.is_available() else "no CUDA device here (inference, crf, metrics: on the CPU)",
)
