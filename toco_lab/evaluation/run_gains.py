"""Which images gain between runs, and pictures of those that gain most and least.

gains = gains_of_runs(RunDir("results/baseline"), RunDir("results/ptc"))
print(gains)                                        # counts, extremes, and what goes with the gain
rows = gains.pictures(3)                            # for figures.cam_gallery, with names=gains.captions(3)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from toco_lab.data.classes import label_names
from toco_lab.data.loader import eval_samples
from toco_lab.evaluation.gains import SIMILARITY, ImageGains, image_gains
from toco_lab.evaluation.image_counts import ImageCounts, images_of_run
from toco_lab.evaluation.prediction import predict
from toco_lab.evaluation.samples import image_label_of
from toco_lab.files import require
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model
from toco_lab.training.processes import resolve_device
from toco_lab.vocabulary import AFTER_BLOCK, CAM, CAM_AUX, MEAN_ABSOLUTE_COSINE, base_target

_SCORES = {CAM: "cam_scores", CAM_AUX: "cam_aux_scores"}  # target -> its map in `predict`; others are label maps alone


@dataclass(frozen=True, eq=False)
class Pair:
    """Two runs of one seed with their pixel counts."""

    before: RunDir
    after: RunDir
    counts_before: ImageCounts
    counts_after: ImageCounts


@dataclass(frozen=True, eq=False)
class GainsOfRuns(ImageGains):
    """What every image gains, and the runs that say so.

    Attributes:
        pairs: Seed -> its two runs.
        split: None is the validation split.
        device: auto, cpu, cuda ...
    """

    pairs: dict[int, Pair]
    split: str | None
    device: str

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels 0..C."""
        return label_names(next(iter(self.pairs.values())).before.config())

    def captions(self, number: int = 3) -> list[str]:
        """Name of each extreme image with its gain in points, and the seed that is shown."""
        gains = self.frame.set_index("image")["gain"]
        return [f"{name}\n{100 * gains[name]:+.0f} (seed {self.typical_seed(name)})" for name in self.extremes(number)]

    def pictures(self, number: int = 3) -> list[dict[str, np.ndarray]]:
        """The images that gain most and least as rows of `figures.cam_gallery`: image, truth, and of both models the
        map and the label that is made of it; a segmentation has the label alone.

        Each image is shown in its typical seed.

        Args:
            number: Of images at either end.

        Raises:
            ValueError: If the number is not positive, or a run cannot be read.
        """
        wanted = self.extremes(number)
        rows: dict[str, dict[str, np.ndarray]] = {name: {} for name in wanted}
        for seed in dict.fromkeys(map(self.typical_seed, wanted)):
            names = [name for name in wanted if self.typical_seed(name) == seed]
            pair = self.pairs[seed]
            for title, run, counts in (
                (self.before, pair.before, pair.counts_before),
                (self.after, pair.after, pair.counts_after),
            ):
                for name, maps in self._maps(run, counts, names, title).items():
                    rows[name] |= maps
        return list(rows.values())

    @torch.no_grad()
    def _maps(
        self, run: RunDir, counts: ImageCounts, names: Sequence[str], title: str
    ) -> dict[str, dict[str, np.ndarray]]:
        """By name of the image: the image, its truth, and what one run says of it."""
        device = resolve_device(self.device)
        model, cfg = load_run_model(run, device)
        base = base_target(self.target)
        tuned = {base: counts.protocol[self.target]["background_threshold"]} if base != self.target else {}
        samples, found = eval_samples(cfg, model.mean, model.std, self.split), {}
        places = {name: place for place, name in enumerate(samples.reader.names)}
        for name in names:
            sample = samples[places[name]]
            image, label = (
                one[None].to(next(model.parameters()).device) for one in (sample.image, image_label_of(sample))
            )
            predicted = predict(model, cfg, image, label, (base,), tuned=tuned)
            scores = _SCORES.get(base)
            maps = {title: predicted[scores][0].cpu().numpy()} if scores else {}
            maps[f"{title}, label"] = predicted[self.target][0].cpu().numpy()
            truth = {} if sample.mask is None else {"truth": sample.mask.numpy()}
            found[name] = {"image": sample.raw} | truth | maps
        return found


def gains_of_runs(
    before: RunDir | Sequence[RunDir],
    after: RunDir | Sequence[RunDir],
    *,
    target: str = CAM,
    names: Sequence[str] | None = None,
    split: str | None = None,
    device: str = "auto",
    progress: bool = True,
) -> GainsOfRuns:
    """What every image gains from some runs to others, which are paired by seed.

    The pixel counts of a run are kept in its folder (`images_of_run`).

    Args:
        before, after: Finished runs. One run each is a pair, whatever their seeds.
        target: Of whose label maps, like cam, cam_tuned (at the threshold that is best on training images) or seg.
        names: Of the two; None takes the folders of the first runs.
        split: None takes `val_split`.
        device: auto, cpu, cuda ...
        progress: Show progress bars.

    Raises:
        ValueError: As `image_gains` and `images_of_run`, and if a seed is there twice.
    """
    befores, afters = ([one] if isinstance(one, RunDir) else list(one) for one in (before, after))
    for run in (*befores, *afters):
        require(run, RunDir, "run", ": open one with RunDir(folder)")
    pairs = {
        seed: Pair(*runs, *(_counts(run, target, split, device, progress=progress) for run in runs))
        for seed, runs in _by_seed(befores, afters).items()
    }
    found = image_gains(
        {seed: pair.counts_before.of(target) for seed, pair in pairs.items()},
        {seed: pair.counts_after.of(target) for seed, pair in pairs.items()},
        names=names or (befores[0].name, afters[0].name),
        covariates=None if split else _similarity([pair.before for pair in pairs.values()]),
    )
    return GainsOfRuns(found.frame, found.by_seed, target, found.before, found.after, pairs, split, device)


def _counts(run: RunDir, target: str, split: str | None, device: str, *, progress: bool) -> ImageCounts:
    return images_of_run(run, targets=(base_target(target),), split=split, device=device, progress=progress)


def _by_seed(befores: Sequence[RunDir], afters: Sequence[RunDir]) -> dict[int, tuple[RunDir, RunDir]]:
    """Seed -> two runs."""
    if not befores or not afters:
        raise ValueError("gains need a run on either side")
    if len(befores) == len(afters) == 1:
        return {befores[0].config().seed: (befores[0], afters[0])}
    sides = [{run.config().seed: run for run in runs} for runs in (befores, afters)]
    if any(len(seeds) < len(runs) for seeds, runs in zip(sides, (befores, afters), strict=True)):
        raise ValueError("two runs of one side have the same seed: nobody could tell which are a pair")
    common = [seed for seed in sides[0] if seed in sides[1]]
    if not common:
        raise ValueError(f"no seed in common: {sorted(sides[0])} and {sorted(sides[1])}")
    return {seed: (sides[0][seed], sides[1][seed]) for seed in common}


def _similarity(runs: Sequence[RunDir]) -> pd.DataFrame | None:
    """Mean absolute cosine of the tokens of each image after the last block, mean over the runs that measured it."""
    metric, variant = MEAN_ABSOLUTE_COSINE
    parts = []
    for run in runs:
        try:
            table = run.read_table("smoothing", text=("image",))
        except (FileNotFoundError, ValueError):
            continue  # measured or not, there are gains
        rows = table[(table["metric"] == metric) & (table["variant"] == variant) & (table["site"] == AFTER_BLOCK)]
        parts.append(rows[rows["layer"] == rows["layer"].max()].groupby("image")["value"].mean())
    return pd.concat(parts, axis=1).mean(axis=1).rename(SIMILARITY).to_frame() if parts else None
