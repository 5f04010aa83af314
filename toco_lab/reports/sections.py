"""What each cell of notebook `08_report` shows: `Report(compare_folders(paths)).results()` and so on.

Every section is a list of parts. What a run does not have is said in its place, with the reason.
"""

import functools
import textwrap
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from toco_lab.data.classes import class_names
from toco_lab.figures import across_runs, interactive, printed, series
from toco_lab.figures.colours import assign_colours
from toco_lab.figures.counted import by_name, images_measured, images_tested, number_range
from toco_lab.figures.thresholds import threshold_curves
from toco_lab.reports import parts
from toco_lab.reports.ablation import has_seeds
from toco_lab.reports.comparison import PAIRS, Comparison, RunRecord
from toco_lab.reports.found import found_sentences
from toco_lab.reports.galleries import gallery_part, printed_galleries
from toco_lab.reports.parts import Part, Table, paragraph
from toco_lab.reports.repeat import repeat_lines
from toco_lab.reports.tables import (
    ablation_table,
    asked_table,
    class_scores,
    classes_table,
    differences_table,
    environment_table,
    protocol_of_rows,
    results_tables,
)
from toco_lab.runs.listing import images_evaluated
from toco_lab.runs.scores import SCORES
from toco_lab.tokens.token_maps import TokenMaps, thin_steps
from toco_lab.vocabulary import AFTER_ATTENTION, MEAN_ABSOLUTE_COSINE, VALIDATED
from toco_lab.words import counted

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.figure import Figure

TOKEN_BYTES = 1_500_000  # of tokens in one page; more snapshots than fit are thinned out evenly
DRAWN = (
    "training_curves",
    "learning_rate",
    "iou_per_class",
    "threshold_curves",
    "similarity_per_layer",
    "pairs_per_layer",
    "metrics_per_layer",
    "cam_quality_per_layer",
)  # saved by notebooks; a report draws them itself

Section = list[Part | Table]


class Report:
    """The sections of a report on some runs."""

    def __init__(self, comparison: Comparison, *, title: str = "", paper: bool = False) -> None:
        """Read nothing yet.

        Args:
            comparison: The runs.
            title: Heading; "" takes the one of the comparison.
            paper: Draw every figure for paper as well, for an export as Markdown.
        """
        self.comparison, self.title, self.paper = comparison, title or comparison.title, paper
        self.colours = assign_colours(comparison.groups)
        of_group = {run.name: self.colours[key] for key, runs in comparison.groups.items() for run in runs}
        self.colours |= of_group

    def heading(self) -> Section:
        """Title, and how many runs are done."""
        return [parts.heading(self.title, 1, f"{self.comparison.progress}.")]

    def found(self) -> Section:
        """What came out, in two sentences, and how it was measured."""
        sentences = found_sentences(self.comparison)
        if not sentences:
            return [paragraph(f"No run has a score yet: {self.comparison.progress}.", "missing")]
        protocol = protocol_of_rows(self.comparison)
        return [paragraph(" ".join(sentences), "found"), paragraph(protocol, "protocol")]

    def asked(self) -> Section:
        """The runs, how far they came and why one failed; how colours are to be read."""
        runs, about = self.comparison.runs, self.comparison.about
        shown: Section = [paragraph(about)] if about else []
        shown.append(self._coloured(asked_table(self.comparison)))
        shown += [
            paragraph(f"failed: {run.status['error']}", "missing", run=run.name)
            for run in runs
            if run.status.get("error")
        ]
        colour = "A run keeps its colour in every figure drawn here; pictures its notebooks left have their own."
        if self.comparison.grouped:
            colour = (
                "Runs that differ only in the seed have one colour and are drawn as one curve: their mean, with a band "
                "from the lowest to the highest (in curves per layer: the quartiles over images of all seeds)."
            )
        return [*shown, paragraph(colour)]

    def ablation(self) -> Section:
        """Rows of configs over seeds."""
        found = ablation_table(self.comparison)
        if found is None:
            return [paragraph("There is one row with one seed: nothing is compared.")]
        table, summary = found
        frame, titles = self.comparison.frame, {name: score.title for name, score in SCORES.items()}
        spread, words = has_seeds(frame), "A dot is a run. With one run of each row there is no mean and no spread."
        if spread:
            words = (
                "Rows are compared seed by seed: runs of one seed share their initial weights and the order of the "
                "images. A dot is a run; beside it stand the mean of its row and one standard deviation."
            )
        figure = self._drawing(
            "ablation_rows",
            "Every run, and its row's mean" if spread else "Every run",
            across_runs.ablation_plot(frame, summary, titles=titles),
            lambda: printed.ablation_plot(frame, summary, titles=titles),
        )
        return [table, paragraph(words), figure]

    def results(self) -> Section:
        """Scores and cosines with their protocol."""
        tables, unequal = results_tables(self.comparison)
        shown: Section = [self._coloured(table) for table in tables]
        if unequal:
            words = f"Not measured in the same way in all runs: {', '.join(unequal)}. See what each was measured with."
            shown.append(paragraph(words, "warning"))
        return [*shown, *self._thresholds(), *self._missing("evaluation", "scores", "evaluation.csv")]

    def _thresholds(self) -> Section:
        """mIoU of the CAMs against the background threshold; nothing for runs that were evaluated without."""
        tables = [
            run.thresholds.assign(model=label)
            for label, runs in self.comparison.groups.items()
            for run in runs
            if run.thresholds is not None
        ]
        if not tables:
            return []
        curves = pd.concat(tables, ignore_index=True)
        figure = self._drawing(
            "threshold_curves",
            "mIoU of the CAMs against the background threshold",
            threshold_curves(curves, colours=self.colours),
            lambda: printed.line_panels(
                series.threshold_lines(curves), colours=self.colours, x_title="background threshold (diamond: tuned)"
            ),
        )
        words = (
            "A score with a tuned threshold is at the threshold that is best on training images (the diamond), so it "
            "compares what the maps know. By how much it exceeds the score at the threshold of the config is "
            "calibration: a CAM that one fixed threshold fits well has a merit of its own, and no better map."
        )
        return [figure, paragraph(words)]

    def differences(self) -> Section:
        """Config fields that differ."""
        table = differences_table(self.comparison)
        if table is None:
            several = len(self.comparison.runs) > 1
            return [paragraph("One config: nothing differs." if several else "There is one run only.")]
        return [self._coloured(table), paragraph("All other fields are equal.")]

    def training(self) -> Section:
        """Curves of the loss terms."""
        missing = self._missing("metrics", "training curves", "metrics.csv")
        frames = {
            label: pd.concat(tables)
            for label, runs in self.comparison.groups.items()
            if (tables := [run.metrics for run in runs if run.metrics is not None])
        }
        if not frames:
            return missing
        figure = self._drawing(
            "training",
            "Training curves",
            interactive.training_curves(frames, colours=self.colours),
            lambda: printed.line_panels(series.training_lines(frames), colours=self.colours, x_title="step"),
        )
        validated = any(f"val_{target}" in frame for frame in frames.values() for target in VALIDATED)
        return [figure, *[paragraph(self._validation())] * validated, *missing]

    def classes(self) -> Section:
        """IoU per class, drawn and as numbers."""
        found, table = class_scores(self.comparison), classes_table(self.comparison)
        missing = self._missing("evaluation", "scores per class", "evaluation.csv")
        if found is None or table is None:
            return missing
        note = f"over {self._scored()}"
        bars = parts.drawing("", "IoU per class", interactive.iou_bars(found, colours=self.colours, note=note))
        grouped = [paragraph(f"Mean over the seeds of a config: {self._seeds()}.")] * self.comparison.grouped
        return [bars, table, *grouped, *missing]

    def similarity(self) -> Section:
        """Similarity of tokens per layer, and of pairs of one class and of two."""
        missing, table = self._missing("smoothing", "similarity per layer", "smoothing.csv"), self._smoothing
        if table.empty:
            return missing
        shown = [self._per_layer("similarity_per_layer", "Similarity per layer", table, [MEAN_ABSOLUTE_COSINE])]
        if table["metric"].isin([metric for metric, _ in PAIRS]).any():
            shown.append(self._per_layer("pairs_per_layer", "Pairs of tokens per layer", table, PAIRS))
        return [*shown, *missing]

    def layers(self) -> Section:
        """Quality of the CAM of each layer, and all metrics of over-smoothing, where a notebook measured them."""
        table = self._smoothing
        shown: Section = []
        heads = [
            run.layer_cams.assign(model=label)
            for label, run in self.comparison.first_seeds().items()
            if run.layer_cams is not None
        ]
        if heads and len(table):
            quality = pd.concat(heads)
            figure = interactive.quality_and_similarity(quality, table, colours=self.colours)
            shown.append(
                self._drawing(
                    "cam_quality_per_layer",
                    f"CAM quality per layer, over {images_tested(quality)}",
                    figure,
                    lambda: self._lines(series.cam_quality_lines(quality), quality, images_tested(quality)),
                )
            )
        keys = [*table.drop_duplicates("metric")[["metric", "variant"]].itertuples(index=False, name=None)]
        if len(keys) > 1 + len(PAIRS):
            blocks = table[table["site"] != AFTER_ATTENTION]
            figure = interactive.smoothing_panels(blocks, metrics=keys, colours=self.colours)
            shown.append(
                self._drawing(
                    "metrics_per_layer",
                    f"All metrics per layer, over {images_measured(blocks)}",
                    figure,
                    lambda: self._lines(series.layer_lines(blocks, keys), blocks, images_measured(blocks)),
                )
            )
        return shown or [paragraph("No run has them; notebook 05_over_smoothing measures them.")]

    def tokens(self) -> Section:
        """The token explorer: one for all runs that kept tokens of the same probe images."""
        from toco_lab.explorers.token_page import explorer_element_html, explorer_module_html

        shown = self.comparison.first_seeds()
        groups: dict[tuple[str, ...], list[TokenMaps]] = {}
        for label, run in shown.items():
            same = tuple(f"{one.image_name} {one.image.shape}" for one in run.tokens)
            groups.setdefault(same, []).extend(replace(one, model=label) for one in run.tokens)
        budget = TOKEN_BYTES // max(1, sum(map(len, groups.values())))
        written = ""
        for number, maps in enumerate(filter(None, groups.values()), start=1):
            thinned = [thin_steps(one, budget) for one in maps]
            compared = {"right": 1} if len({one.model for one in maps}) > 1 else {}
            state = _last_state(thinned) | compared
            written += explorer_element_html(thinned, f"tokens-{number}", colours=self.colours, **state)
        missing = self._missing_first(lambda run: run.tokens, "tokens of probe images", "tokens")
        if not written and all(run.config.token_snapshots == 0 for run in shown.values()):
            return [paragraph("These runs were asked to keep no tokens (token_snapshots is 0).")]
        if not written:
            return missing
        words = "The tokens can be clicked on in the HTML report."
        explorer = Part({"text/html": explorer_module_html() + written, "text/markdown": words})
        return [explorer, *self._only_first_seeds(), *missing]

    def gallery(self) -> Section:
        """What the runs make of the same images."""
        runs = {label: run for label, run in self.comparison.first_seeds().items() if run.gallery}
        missing = self._missing_first(lambda run: run.gallery, "gallery", "gallery.npz")
        if not runs:
            return missing
        galleries = {label: run.gallery for label, run in runs.items() if run.gallery}
        names = ("background", *class_names(next(iter(runs.values())).config))
        on_paper = printed_galleries(galleries, names) if self.paper else ()
        return [gallery_part(galleries, names, self.colours), *on_paper, *self._only_first_seeds(), *missing]

    def pictures(self) -> Section:
        """Figures that notebooks left in the folders and that are not drawn here anyhow."""
        found: dict[str, list[Part]] = {}
        for run in self.comparison.first_seeds().values():
            drawn = (*DRAWN, *(["cam_gallery"] if run.gallery else []))
            for path in run.run.figures():
                if path.stem not in drawn:
                    found.setdefault(path.stem, []).append(parts.picture(path, run.name, paper=self.paper))
        missing = self._missing_first(lambda run: run.run.figures(), "pictures", "figures")
        shown: Section = []
        for stem, figures in found.items():
            shown += [parts.heading(stem.replace("_", " "), 3), *figures]
        only = self._only_first_seeds() if shown else []
        return [*shown, *only, *missing] or [paragraph("There are none but those drawn above.")]

    def environment(self) -> Section:
        """Commit, versions and device."""
        table = environment_table(self.comparison)
        missing = self._missing("environments", "environment", "env.json")
        return [table, *missing] if table else missing

    def repeat(self) -> Section:
        """The commands that make these runs, in these folders, and this report."""
        return [parts.shell_lines(repeat_lines(self.comparison, self.title))]

    # --- what several sections need -----------------------------------------------------------------------------------

    @cached_property
    def _smoothing(self) -> pd.DataFrame:
        """Rows of smoothing.csv of all runs; the label of its group is the model."""
        tables = [
            run.smoothing.assign(model=label, run=run.name)
            for label, runs in self.comparison.groups.items()
            for run in runs
            if run.smoothing is not None and (run.smoothing["metric"] == MEAN_ABSOLUTE_COSINE[0]).any()
        ]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["metric", "variant", "site"])

    def _per_layer(self, name: str, title: str, table: pd.DataFrame, keys: Any) -> Part:
        figure = interactive.smoothing_curves(table, metrics=keys, colours=self.colours)
        over = images_measured(series.rows_of_metrics(table, keys))
        paper = functools.partial(self._lines, series.layer_lines(table, keys), table, over)
        return self._drawing(name, f"{title}, over {over}", figure, paper)

    def _lines(self, lines: pd.DataFrame, table: pd.DataFrame, over: str) -> "Figure":
        x_title = "\n".join(["block", *textwrap.wrap(f"over {over}", 90)])
        return printed.line_panels(
            lines, colours=self.colours, x_title=x_title, ticks=series.layer_ticks(table, sparse=True)
        )

    def _scored(self) -> str:
        """Over how many images each run (or each row, with its seeds) was scored."""
        return by_name(
            {
                label: "an unknown number of images" if not counts else counted(number_range(counts), "image")
                for label, runs in self.comparison.groups.items()
                if any(run.evaluation is not None for run in runs)
                for counts in [[n for run in runs for n in images_evaluated(run.run).values()]]
            }
        )

    def _seeds(self) -> str:
        """How many seeds each row has a score of."""
        scored = {
            label: sum(run.evaluation is not None for run in runs) for label, runs in self.comparison.groups.items()
        }
        return by_name({label: counted(str(count), "seed") for label, count in scored.items()})

    def _validation(self) -> str:
        """Over how many images the curves of validation are."""
        configs = {label: run.config for label, run in self.comparison.first_seeds().items()}
        over = by_name(
            {label: f"{counted(cfg.val_images or 'all', 'image')} of {cfg.val_split}" for label, cfg in configs.items()}
        )
        return f"Losses and pairs: means over the batches since the last logged step. Validation scores: over {over}."

    def _drawing(self, name: str, title: str, screen: "go.Figure", paper: Callable[[], "Figure"]) -> Part:
        return parts.drawing(name, title, screen, paper() if self.paper else None)

    def _coloured(self, table: Table) -> Table:
        return replace(table, colours=self.colours)

    def _missing(self, attribute: str, what: str, name: str) -> Section:
        """A line for each run that lacks something."""
        found = {run: getattr(run, attribute) for run in self.comparison.runs}
        lacking = [run for run, own in found.items() if own is None or not len(own)]
        return [paragraph(run.absence(what, name), "missing", run=run.name) for run in lacking]

    def _missing_first(self, there: Callable[[RunRecord], Any], what: str, name: str) -> Section:
        """The same for what is shown of the first seed of each config only."""
        lacking = [run for run in self.comparison.first_seeds().values() if not there(run)]
        return [paragraph(run.absence(what, name), "missing", run=run.name) for run in lacking]

    def _only_first_seeds(self) -> Section:
        return [paragraph("Of runs that differ only in the seed, the first is shown.")] * self.comparison.grouped


def _last_state(maps: list[TokenMaps]) -> dict[str, int]:
    """Open at the last block of the last step, where over-smoothing is strongest."""
    return {"layer": len(maps[0].layers) - 2, "step": max(one.steps[-1] for one in maps)}
