"""Faithfulness of attributions over a data set: which map finds what the model uses, and which finds the object?"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from toco_lab.attribution.asked import AskedImage, Maker, Methods, Place, images_of, makers_of
from toco_lab.attribution.faithfulness import (
    BLUR,
    DELETION_BASELINE,
    INSERTION_BASELINE,
    STEPS,
    Baseline,
    MapScores,
    area,
    map_scores,
    score_name,
)
from toco_lab.backbones.weights import weights_hash
from toco_lab.config import Config
from toco_lab.files import require
from toco_lab.progress import progress_bar
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model
from toco_lab.training.processes import resolve_device
from toco_lab.vocabulary import DELETION, INSERTION, POINTING
from toco_lab.words import counted

NUM_IMAGES = 20
TOLERANCE = 0.03  # of the longer side of an image: 15 pixels of 500, as in the paper of the pointing game
_PROTOCOL = ("score", "dataset", "split", "image_size", "checkpoint", "seed")  # columns at the end of the table


@dataclass(frozen=True)
class Faithfulness:
    """What `measure_attributions` found.

    Attributes:
        cases: A row per image, class and map: image, class, method, block (empty where it is the usual one), insertion
            and deletion (areas), distance (pixels, see `MapScores.distance`).
        curves: The mean score of the class at each share of the pixels: model, method, block, measure, share, score,
            low and high (quartiles over cases), area, baseline, cases, images.
        protocol: What defines the numbers.
        tolerance: Of the pointing game, in pixels of the masks; NaN where there is no mask.
    """

    cases: pd.DataFrame
    curves: pd.DataFrame
    protocol: dict[str, Any]
    tolerance: float

    @property
    def table(self) -> pd.DataFrame:
        """A row per map and measure, as `attribution_table` describes it."""
        rows = []
        for (method, block), cases in self.cases.groupby(["method", "block"], sort=False, dropna=False):
            place = {"model": self.protocol["model"], "method": method, "block": block}
            for measure in (INSERTION, DELETION):
                asked = {"steps": self.protocol["steps"], "baseline": self.protocol["baseline"][measure]}
                asked |= {"baseline_score": self.protocol["baseline_score"][measure], "tolerance": math.nan}
                rows.append(place | self._summary(measure, cases[measure], cases["image"]) | asked)
            distances = cases["distance"].dropna()
            if len(distances):
                hits = (distances <= self.tolerance).astype(float)
                rows.append(place | self._summary(POINTING, hits, cases["image"]) | {"tolerance": self.tolerance})
        table = pd.DataFrame(rows).astype({"block": "Int64", "steps": "Int64"})
        return table.assign(**{name: self.protocol[name] for name in _PROTOCOL})

    def __str__(self) -> str:
        """A compact table of per cent: a row per map, its three numbers, and below it what they depend on."""
        table = self.table.assign(value=lambda frame: 100 * frame["value"])
        table["block"] = table["block"].map(lambda block: "" if pd.isna(block) else f"block {block}")
        wide = table.pivot_table(index=["method", "block"], columns="measure", values="value", sort=False)
        asked = self.protocol
        images, cases = counted(asked["images"], "image"), counted(asked["cases"], "case")
        lines = [
            wide.reset_index().rename_axis(columns=None).to_string(index=False, float_format="{:.1f}".format),
            f"per cent over {images}, {cases} (an image and one of its classes) of {asked['dataset']} "
            f"{asked['split']}, image size {asked['image_size']}",
            f"insertion (more is better) from {asked['baseline'][INSERTION]}; deletion (less is better) to "
            f"{asked['baseline'][DELETION]}; {counted(asked['steps'], 'step')}, {asked['score']}",
            f"an image that is all baseline scores {100 * asked['baseline_score'][INSERTION]:.1f} (insertion) and "
            f"{100 * asked['baseline_score'][DELETION]:.1f} (deletion)",
        ]
        if not math.isnan(self.tolerance):
            lines.append(f"pointing game (more is better): maximum on the class or {self.tolerance:g} pixels beside it")
        return "\n".join(lines)

    @staticmethod
    def _summary(measure: str, values: pd.Series, images: pd.Series) -> dict[str, Any]:
        counts = {"cases": len(values), "images": images[values.index].nunique()}
        return {"measure": measure, "value": values.mean(), "standard_error": values.sem()} | counts


def attribution_table(model: RunDir | nn.Module, cfg: Config | None = None, **options: Any) -> pd.DataFrame:
    """How faithful the attributions of a model are, over a data set: the table of `measure_attributions`.

    Example:
        `attribution_table(run, images=20, methods=["CAM", "Grad-CAM", "random map"])`

    Args:
        model: As in `measure_attributions`.
        cfg: As in `measure_attributions`.
        options: `images`, `methods`, `blocks`, `steps` and the others of `measure_attributions`.

    Returns:
        A row per map and measure: model, method, block (empty: the usual one), measure (`insertion`, `deletion`,
        `pointing game`), value in [0, 1] (mean area, or share of hits), standard_error over the cases, cases (an image
        and one of its classes), images, steps, baseline, baseline_score (mean class score of an image that is all
        baseline: where it is high, the baseline gives the class away), tolerance (pixels), score (what was read of the
        model), dataset, split, image_size, checkpoint, seed (of training). There are no rows of the pointing game
        without masks.
    """
    return measure_attributions(model, cfg, **options).table


@torch.no_grad()
def measure_attributions(
    model: RunDir | nn.Module,
    cfg: Config | None = None,
    *,
    images: int | Iterable[Tensor] = NUM_IMAGES,
    methods: Methods | None = None,
    blocks: Sequence[int] | None = None,
    steps: int = STEPS,
    insertion_baseline: Baseline = INSERTION_BASELINE,
    deletion_baseline: Baseline = DELETION_BASELINE,
    tolerance: float | None = None,
    split: str | None = None,
    name: str | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Faithfulness:
    """Insertion, deletion and the pointing game of each attribution, for every class of every image.

    All maps of an image are compared on the same image at the same size (`Config.eval_cam_size`). Beside the methods
    stand controls, which know neither model nor image: a method that does not beat them says nothing.

    Args:
        model: A run, whose last checkpoint is read; or ToCo with its config; or any model that is read here.
        cfg: Config of the data set; None takes that of the run.
        images: How many images of the split, the first ones that show a class. Or normalised images, (3, H, W) each,
            without masks: each is asked for the class that the model finds most probable.
        methods: Names of `ATTRIBUTIONS` and `CONTROLS`, and of ToCo `CAM` and `auxiliary CAM` at the scales of the
            config; or functions by name, (model, image (1, 3, H, W), class index) -> (1, H, W). None takes all that the
            model can give.
        blocks: Blocks, from 1, at each of which those of `ATTRIBUTIONS` are read; None reads each where it is usual.
        steps: Of insertion and deletion.
        insertion_baseline: As in `map_scores`.
        deletion_baseline: As in `map_scores`.
        tolerance: Of the pointing game: how many pixels beside the class still are a hit. None takes `TOLERANCE` of the
            longer side of the images (the median of it).
        split: None takes `cfg.val_split`.
        name: Of the model in the table; None takes that of the run, or the class of the model.
        device: Where the model of a run is put.
        progress: Show a progress bar.

    Raises:
        ValueError: For an unknown method or block, an option out of range, no image with a class, or a number of images
            without a config.
    """
    checkpoint = ""
    if isinstance(model, RunDir):
        run, (model, own) = model, load_run_model(model, resolve_device(device))
        cfg, name, checkpoint = cfg or own, name or run.name, weights_hash(run.checkpoints()[-1])
    require(model, nn.Module, "model", ": give a run, ToCo with its config, or any model that is read here")
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be a number of pixels, at least 0, got {tolerance!r}")
    makers = makers_of(model, cfg, methods, blocks)
    described = {INSERTION: _described(insertion_baseline), DELETION: _described(deletion_baseline)}
    protocol = {
        "model": name or type(model).__name__, "steps": steps, "baseline": described, "score": score_name(model),
        "checkpoint": checkpoint, **_data_protocol(cfg, images, split),
    }  # fmt: skip
    options = {"steps": steps, "insertion_baseline": insertion_baseline, "deletion_baseline": deletion_baseline}
    total = images if isinstance(images, int) else None
    bar = progress_bar(images_of(model, cfg, images, split), "attributions", total, shown=progress)
    return _gathered(model, bar, makers, options, protocol, tolerance)


def _gathered(
    model: nn.Module,
    images: Iterable[AskedImage],
    makers: Mapping[Place, Maker],
    options: Mapping[str, Any],
    protocol: dict[str, Any],
    tolerance: float | None,
) -> Faithfulness:
    """All maps of all images, one image at a time; `options` are those of `map_scores`."""
    found: dict[Place, list[MapScores]] = {place: [] for place in makers}
    rows, sides = [], []
    for asked in images:
        sides.append(asked.longest_side)
        maps: dict[Place, Tensor] = {}
        for one in asked.classes:
            fresh = {place: maker for place, maker in makers.items() if maker.knows_class or place not in maps}
            maps |= {place: maker.make(model, asked.image, one.index) for place, maker in fresh.items()}
            together = torch.cat([maps[place] for place in makers])
            scores = map_scores(model, asked.image, together, one.index, on_class=one.where, **options)
            for place, score in zip(makers, scores, strict=True):
                found[place].append(score)
                areas = score.insertion_area, score.deletion_area
                rows.append((asked.name, one.name, *place, *areas, score.distance))
    if not rows:
        raise ValueError("there is nothing to measure: no image shows a class")
    cases = pd.DataFrame(rows, columns=["image", "class", "method", "block", INSERTION, DELETION, "distance"])
    if tolerance is None:
        tolerance = round(TOLERANCE * median(sides)) if cases["distance"].notna().any() else math.nan
    protocol = protocol | {"images": len(sides), "cases": len(rows) // len(makers)}
    curves = _curves(found, protocol)
    ends = {INSERTION: 0.0, DELETION: 1.0}  # share of the pixels at which an image is all baseline
    protocol["baseline_score"] = {
        measure: curves[(curves["measure"] == measure) & (curves["share"] == end)]["score"].iloc[0]
        for measure, end in ends.items()
    }
    return Faithfulness(cases.astype({"block": "Int64"}), curves, protocol, tolerance)


def _described(baseline: Baseline) -> str:
    return f"blur, sigma {BLUR:g} of the shorter side" if baseline == "blur" else "mean colour"


def _data_protocol(cfg: Config | None, images: int | Iterable[Tensor], split: str | None) -> dict[str, Any]:
    """What the images are, in the words of `evaluate.protocol_record`."""
    if cfg is None or not isinstance(images, int):
        return {"dataset": "images given", "split": "-", "image_size": "native", "seed": cfg.seed if cfg else None}
    side = cfg.eval_cam_size
    size = f"{side} x {side}" if side else "native"
    return {"dataset": cfg.dataset, "split": split or cfg.val_split, "image_size": size, "seed": cfg.seed}


def _curves(found: Mapping[Place, Sequence[MapScores]], protocol: Mapping[str, Any]) -> pd.DataFrame:
    """`Faithfulness.curves`."""
    parts = []
    for (method, block), scores in found.items():
        for measure in (INSERTION, DELETION):
            curves = torch.stack([getattr(one, measure) for one in scores]).double()  # (cases, steps + 1)
            mean = curves.mean(0)
            low, high = curves.quantile(torch.tensor([0.25, 0.75], dtype=curves.dtype), dim=0)
            places = {"model": protocol["model"], "method": method, "block": block, "measure": measure}
            share = torch.linspace(0, 1, len(mean))
            numbers = {"share": share, "score": mean, "low": low, "high": high}
            counts = {name: protocol[name] for name in ("cases", "images")}
            more = {"area": area(mean), "baseline": protocol["baseline"][measure]} | counts
            parts.append(pd.DataFrame(places | {key: value.numpy() for key, value in numbers.items()} | more))
    return pd.concat(parts, ignore_index=True).astype({"block": "Int64"})
