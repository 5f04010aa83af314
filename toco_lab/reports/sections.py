"""What a report says, section by section, whoever writes it down: `report` as a page, `appendix` for a paper."""

import shlex
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from toco_lab.config import Config, config_differences
from toco_lab.data.classes import class_names
from toco_lab.evaluation.gallery import joint_rows
from toco_lab.figures import interactive, printed
from toco_lab.presets import PRESETS
from toco_lab.reports.comparison import PAIRS, Comparison
from toco_lab.reports.parts import Code, Galleries, Part, Pictures, Plot, Points, Section, Text, Tokens
from toco_lab.reports.result_tables import (
    ablation_table,
    asked_table,
    class_scores,
    classes_table,
    differences_table,
    environment_table,
    results_tables,
)
from toco_lab.runs import scores
from toco_lab.vocabulary import AFTER_ATTENTION, FINAL_NORM, MEAN_ABSOLUTE_COSINE, TITLES

DRAWN = (
    "training_curves",
    "learning_rate",
    "iou_per_class",
    "similarity_per_layer",
    "pairs_per_layer",
    "metrics_per_layer",
    "cam_quality_per_layer",
)  # saved by notebooks; a report draws them itself
WARNINGS = (
    "Whether depth raises similarity depends on the weights. Compare trained with initial and with random weights, and "
    "do not expect the shape the paper shows.",
    "The final LayerNorm changes these numbers abruptly: the last block (raw) and the tokens after the norm are two "
    "points.",
    "Patch token contrast is 0.5 twice over, when all tokens are equal and when all are orthogonal: read it only with "
    "the |cos| of positive and of negative pairs beside it.",
    "A cosine is dominated by a few large channels and by high-norm tokens, and N matters: compare only runs of one "
    "input size.",
)


class Report:
    """The sections of a report on some runs."""

    def __init__(self, comparison: Comparison, title: str | None = None) -> None:
        """`title`: heading; made from the names of the runs by default."""
        self.comparison = comparison
        names = comparison.names
        short = "Report on " + ", ".join(names) if len(names) <= 3 else f"Report on {len(names)} runs"
        self.title = title or (f"Report on {comparison.about.partition(':')[0]}" if comparison.about else short)
        self.colours = interactive.assign_colours(comparison.groups)
        of_group = {run.name: self.colours[key] for key, runs in comparison.groups.items() for run in runs}
        self.colours |= of_group

    @property
    def lead(self) -> str:
        """How many runs there are and how many are done."""
        runs = self.comparison.runs
        done = sum(run.status.get("state") == "done" for run in runs)
        rest = "" if done == len(runs) else f"; {len(runs) - done} unfinished or failed"
        return f"{len(runs)} run{'s' * (len(runs) != 1)}, {done} finished{rest}"

    @cached_property
    def sections(self) -> list[Section]:
        """Everything, in the order of reading; a section without parts is left out."""
        made = [
            Section("What was asked", self._asked()),
            Section("Ablation", self._ablation()),
            Section("Results", self._results()),
            Section("Differences between the runs", self._differences()),
            Section("Training", self._training()),
            Section("IoU per class", self._classes()),
            Section("Similarity of tokens per layer", self._similarity()),
            Section("Tokens to click on", self._tokens()),
            Section("The same images in all runs", self._galleries()),
            Section("Pictures", self._pictures()),
            Section("Environment", self._environment()),
            Section("How to repeat this", self._repeat()),
        ]
        return [section for section in made if section.parts]

    # --- sections -----------------------------------------------------------------------------------------------------

    def _asked(self) -> list[Part]:
        runs = self.comparison.runs
        parts: list[Part] = [Text(self.comparison.about)] * bool(self.comparison.about)
        parts.append(asked_table(self.comparison))
        parts += [
            Text(f"failed: {run.status['error']}", "missing", run.name) for run in runs if run.status.get("error")
        ]
        colour = "A run keeps its colour in every figure drawn here; pictures its notebooks left have their own."
        if self.comparison.grouped:
            colour = (
                "Runs that differ only in the seed have one colour and are drawn as one curve: their mean, with a band "
                "from the lowest to the highest (in curves per layer: the quartiles over images of all seeds)."
            )
        return [*parts, Text(colour)]

    def _ablation(self) -> list[Part]:
        found = ablation_table(self.comparison)
        if found is None:
            return []
        table, summary = found
        frame, titles = self.comparison.frame, {name: score.title for name, score in scores.SCORES.items()}
        return [
            table,
            Plot(
                "ablation",
                "Every run, and its row's mean",
                lambda: interactive.ablation_plot(frame, summary, titles=titles),
                lambda: printed.ablation_plot(frame, summary, titles=titles),
            ),
            Text("A dot per run, the mean of its row with one standard deviation. Rows are compared seed by seed."),
        ]

    def _results(self) -> list[Part]:
        tables, unequal = results_tables(self.comparison)
        parts: list[Part] = [*tables]
        if unequal:
            names = ", ".join(unequal)
            parts.append(Text(f"Not measured in the same way in all runs: {names}. See under each number.", "warning"))
        parts += self._missing("evaluation", "scores", "evaluation.csv")
        note = (
            "Scores in per cent, cosines in [0, 1], ± is the standard deviation over images. A CAM far below the "
            "auxiliary CAM, with a similarity near 1 in the last block, is over-smoothing; a gap between positive and "
            "negative pairs means that tokens still tell objects apart."
        )
        return parts + [Text(note)] * bool(tables)

    def _differences(self) -> list[Part]:
        table = differences_table(self.comparison)
        if table is None:
            several = len(self.comparison.runs) > 1
            return [Text("One config: nothing differs." if several else "There is one run only.")]
        return [table, Text("All other fields are equal.")]

    def _training(self) -> list[Part]:
        frames = {
            label: pd.concat(tables)
            for label, runs in self.comparison.groups.items()
            if (tables := [run.metrics for run in runs if run.metrics is not None and len(run.metrics)])
        }
        missing = [
            Text(run.absence("training curves", "metrics.csv"), "missing", run.name)
            for run in self.comparison.runs
            if run.metrics is None or run.metrics.empty
        ]
        if not frames:
            return missing
        note = (
            "Each term unweighted, each panel with its own scale. Terms that start later are zero until then. Watch "
            "the |cos| of negative pairs fall while that of positive pairs stays: that is patch token contrast at work."
        )
        return [
            Plot(
                "training",
                "Training curves",
                lambda: interactive.training_curves(frames, colours=self.colours),
                lambda: printed.line_panels(_training_lines(frames), colours=self.colours, x_title="step"),
            ),
            *missing,
            Text(note),
        ]

    def _classes(self) -> list[Part]:
        scores, missing = class_scores(self.comparison), self._missing("evaluation", "scores per class")
        if scores is None:
            return missing
        mean = " Mean over the seeds of a config." if self.comparison.grouped else ""
        note = "Last comes the mean. A class without a value occurs neither in the truth nor in the prediction."
        bars = Plot(
            "iou_per_class",
            "IoU per class",
            lambda: interactive.iou_bars(scores, colours=self.colours),
            lambda: classes_table(self.comparison),
        )
        return [bars, *missing, Text(note + mean)]

    def _similarity(self) -> list[Part]:
        tables = [
            run.smoothing.assign(model=label)
            for label, runs in self.comparison.groups.items()
            for run in runs
            if run.smoothing is not None and (run.smoothing["metric"] == MEAN_ABSOLUTE_COSINE[0]).any()
        ]
        parts: list[Part] = []
        if tables:
            parts = self._layers(pd.concat(tables, ignore_index=True))
        return parts + self._missing("smoothing", "similarity per layer") + [Points(WARNINGS)]

    def _layers(self, table: pd.DataFrame) -> list[Part]:
        """Similarity, pairs, CAM quality and all metrics, per layer."""
        parts: list[Part] = [
            self._per_layer("similarity_per_layer", "Similarity per layer", table, [MEAN_ABSOLUTE_COSINE]),
            Text(
                "Mean over images, band and bar from the lower to the upper quartile. Near 1 all tokens of an image "
                "point the same way, so a CAM read from them is flat."
            ),
        ]
        if table["metric"].isin([metric for metric, _ in PAIRS]).any():
            parts += [
                self._per_layer("pairs_per_layer", "Pairs of tokens per layer", table, PAIRS),
                Text(
                    "Pairs of tokens of one class (positive) and of different classes (negative). Where the two meet, "
                    "tokens no longer tell classes apart."
                ),
            ]
        heads = [
            run.layer_cams.assign(model=label)
            for label, runs in self.comparison.first_seeds().items()
            for run in [runs]
            if run.layer_cams is not None
        ]
        if heads:
            quality = pd.concat(heads)
            parts += [
                Plot(
                    "cam_quality_per_layer",
                    "CAM quality per layer",
                    lambda: interactive.quality_and_similarity(quality, table, colours=self.colours),
                    lambda: printed.line_panels(
                        _quality_lines(quality), colours=self.colours, x_title="block", ticks=_ticks(quality)
                    ),
                ),
                Text(
                    "A linear head on the frozen tokens of each block, trained from image labels; its CAM by the run's "
                    "protocol, at the run's threshold (solid) and at the best of each layer (dotted, or a panel of its "
                    "own)."
                ),
            ]
        keys = [*table.drop_duplicates("metric")[["metric", "variant"]].itertuples(index=False, name=None)]
        if len(keys) > 1 + len(PAIRS):
            blocks = table[table["site"] != AFTER_ATTENTION]
            parts += [
                Plot(
                    "metrics_per_layer",
                    "All metrics per layer",
                    lambda: interactive.smoothing_panels(blocks, metrics=keys, colours=self.colours),
                    lambda: self._printed_layers(blocks, keys),
                ),
                Text(
                    "All metrics of the literature, one variant each, every panel with its own scale: compare shapes. "
                    "What each one sees is listed in notebook 05_over_smoothing."
                ),
            ]
        return parts

    def _per_layer(self, name: str, title: str, table: pd.DataFrame, keys: Any) -> Plot:
        return Plot(
            name,
            title,
            lambda: interactive.smoothing_curves(table, metrics=keys, colours=self.colours),
            lambda: self._printed_layers(table, keys),
        )

    def _printed_layers(self, table: pd.DataFrame, keys: Any) -> Any:
        lines = _layer_lines(table, keys)
        return printed.line_panels(lines, colours=self.colours, x_title="block", ticks=_ticks(table))

    def _tokens(self) -> list[Part]:
        shown = self.comparison.first_seeds()
        have = {label: run for label, run in shown.items() if run.tokens}
        missing = [
            Text(run.absence("tokens of probe images", "tokens"), "missing", run.name)
            for run in shown.values()
            if not run.tokens
        ]
        parts: list[Part] = [Tokens(have), *self._only_first_seeds()] if have else []
        return parts + missing

    def _galleries(self) -> list[Part]:
        runs = {label: run for label, run in self.comparison.first_seeds().items() if run.gallery}
        if not runs:
            return []
        galleries = {run.name: run.gallery for run in runs.values()}
        columns = {label: run.name for label, run in runs.items()}
        names = ("background", *class_names(next(iter(runs.values())).config))
        note = (
            "The first validation images; a CAM is that of the strongest class which is there, all on one scale from "
            "0 to 1. Compare where a CAM ends with where the object ends, and the CAM with the auxiliary CAM."
        )
        absent = [
            Text(run.absence("gallery", "gallery.npz"), "missing", run.name)
            for run in self.comparison.first_seeds().values()
            if not run.gallery
        ]
        return [Galleries(joint_rows(galleries), columns, names), Text(note), *self._only_first_seeds(), *absent]

    def _pictures(self) -> list[Part]:
        """Figures that notebooks left in the folders and that are not drawn here anyhow."""
        runs = self.comparison.first_seeds().values()
        found: dict[str, dict[str, Path]] = {}
        for run in runs:
            drawn = (*DRAWN, *(["cam_gallery"] if run.gallery else []))
            for path in run.run.figures():
                if path.stem not in drawn:
                    found.setdefault(path.stem, {})[run.name] = path
        missing = [
            Text(run.absence("pictures", "figures"), "missing", run.name) for run in runs if not run.run.figures()
        ]
        parts: list[Part] = [Pictures(stem, files) for stem, files in found.items()]
        note = "All CAMs share one colour scale; white and hatched pixels are ignored."
        return parts + ([Text(note), *self._only_first_seeds()] if parts else []) + missing

    def _environment(self) -> list[Part]:
        table = environment_table(self.comparison)
        missing = [
            Text(run.absence("environment", "env.json"), "missing", run.name)
            for run in self.comparison.runs
            if not run.environments
        ]
        return [table] * (table is not None) + missing

    def _repeat(self) -> list[Part]:
        lines = []
        for run in self.comparison.runs:
            lines += [f"# {run.name}", train_command(run.config)]
            lines += [f"python -m toco_lab evaluate {shlex.quote(str(run.run.path))}", ""]
        paths = shlex.join(map(str, self.comparison.paths))
        lines += ["# this report", f"python -m toco_lab report {paths} --out report.html report.md"]
        note = (
            "With the commit, versions and device of the section above. On one CPU a repeat gives the same numbers to "
            "the bit; on a GPU they differ from run to run, so compare means over seeds."
        )
        return [Code("\n".join(lines)), Text(note)]

    def _missing(self, attribute: str, what: str, name: str | None = None) -> list[Part]:
        """A line for each run that lacks a table."""
        lacking = [run for run in self.comparison.runs if getattr(run, attribute) is None]
        return [Text(run.absence(what, name or f"{attribute}.csv"), "missing", run.name) for run in lacking]

    def _only_first_seeds(self) -> list[Part]:
        return [Text("Of runs that differ only in the seed, the first is shown.")] * self.comparison.grouped


def train_command(cfg: Config) -> str:
    """The command line that makes a run of this config: its preset and the fields that differ from it."""
    base = cfg.preset_name if cfg.preset_name in PRESETS else "voc_deit_b"  # any preset will do, given the differences
    words = ["python", "-m", "toco_lab", "train", base]
    for key, values in config_differences({"base": Config.preset(base), "run": cfg}).items():
        value, option = values["run"], key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)


# --- tables of `figures.line_panels` ----------------------------------------------------------------------------------


def _training_lines(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Every known column that is not zero throughout; over seeds the mean, the lowest and the highest."""
    lines = []
    for column, title in TITLES.items():
        if any(column in frame and frame[column].fillna(0).any() for frame in frames.values()):
            for label, frame in frames.items():
                if column in frame:
                    stats = frame.dropna(subset=[column]).groupby("step")[column].agg(["mean", "min", "max"])
                    stats = stats.reset_index().set_axis(["x", "mean", "low", "high"], axis=1)
                    lines.append(stats.assign(panel=title, line=label, apart=False))
    return pd.concat(lines) if lines else pd.DataFrame(columns=["panel"])


def _layer_lines(table: pd.DataFrame, keys: Any) -> pd.DataFrame:
    """Mean and quartiles over images, the final norm as one more place behind the last block."""
    lines = []
    x = table["layer"] - 0.5 * (table["site"] == AFTER_ATTENTION) + (table["site"] == FINAL_NORM)
    for metric, variant in keys:
        rows = table.assign(x=x)[(table["metric"] == metric) & (table["variant"] == variant)]
        for label, part in rows.groupby("model", sort=False):
            stats = part.groupby("x")["value"].describe()[["mean", "25%", "75%"]].reset_index()
            stats = stats.set_axis(["x", "mean", "low", "high"], axis=1)
            normed = part.loc[part["site"] == FINAL_NORM, "x"]
            lines.append(stats.assign(panel=f"{metric}\n{variant}", line=label, apart=stats["x"].isin(normed)))
    return pd.concat(lines)


def _quality_lines(quality: pd.DataFrame) -> pd.DataFrame:
    """mIoU of the CAM of each layer at the run's threshold and at the best one."""
    apart = quality["site"] == FINAL_NORM
    quality = quality.assign(
        x=quality["layer"] + apart, apart=apart, mean=100 * quality["miou"], low=np.nan, high=np.nan
    )
    kinds = {"own": "CAM mIoU, %, own threshold", "best": "CAM mIoU, %, best threshold"}
    return pd.concat(
        quality[quality[kind]].drop_duplicates(["model", "x"]).assign(panel=title).rename(columns={"model": "line"})
        for kind, title in kinds.items()
    )


def _ticks(table: pd.DataFrame) -> dict[float, str]:
    """Some blocks as numbers, and the place of the final norm as a word."""
    last, normed = int(table["layer"].max()), FINAL_NORM in set(table["site"])
    step = max(1, last // 4)
    ticks = {layer: str(layer) for layer in range(step, last + 1 - step * normed, step)}
    return ticks | ({last + 1: "norm"} if normed else {last: str(last)})
