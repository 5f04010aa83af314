"""The views of the CAM explorer: each as a `Panel` with a title and a number, and all of them in words.

Session and choice in, panels out: no widget is known here, and nothing is drawn.
"""

import html
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from toco_lab.attribution.catalogue import ATTRIBUTIONS
from toco_lab.config import IGNORE_INDEX
from toco_lab.data.classes import PALETTE
from toco_lab.explorers.cam_session import CamSession, ImageIou
from toco_lab.explorers.panels import REGIONS, CropBox, Panel, label_legend
from toco_lab.method.crops import IGNORED, NEGATIVE, POSITIVE
from toco_lab.methods import learns_segmentation
from toco_lab.vocabulary import BACKGROUND, CAM, CAM_AUX, SEG, TITLES

VIEWS = {  # view -> tooltip of its button
    "image": "the image as it is",
    TITLES[CAM]: "class activation map of the final patch tokens",
    TITLES[CAM_AUX]: "class activation map of the auxiliary tokens, from an earlier layer",
    "CAM label": "the strongest class where the CAM exceeds the background threshold",
    "pseudo label": "class above high, background at or below low, left open between them",
    "refined label": "the pseudo label after looking at the image; choose by what, and press Refine",
    TITLES[SEG]: "what the decoder predicts in one pass",
    "truth": "the mask, which training never sees",
    "regions and crops": "uncertain regions of the auxiliary CAM, and local crops that class token contrast could draw",
} | {name: attribution.about for name, attribution in ATTRIBUTIONS.items()}
_MAPS = frozenset({TITLES[CAM], TITLES[CAM_AUX]})
_LABELS = frozenset({"CAM label", "pseudo label", "refined label"})
READ_BY = {  # control -> views it moves; a refined label says with what the next one would be made
    "class_picker": _MAPS | {name for name, attribution in ATTRIBUTIONS.items() if attribution.knows_class},
    "source": _LABELS,
    "block": frozenset(ATTRIBUTIONS),
    "scale_boxes": _MAPS | _LABELS | {"regions and crops"},
    "flip": _MAPS | _LABELS | {"regions and crops"},
    "low": frozenset({"pseudo label", "refined label", "regions and crops"}),
    "high": frozenset({"pseudo label", "refined label", "regions and crops"}),
    "background": frozenset({"CAM label"}),
    "measure_button": _MAPS | set(ATTRIBUTIONS),
}
REFINEMENTS = {
    "par": "PAR", "pamr": "PAMR", "crf": "CRF", "patch": "patch affinity", "patch+par": "patch affinity, PAR",
    "walk": "affinity walk", "walk+par": "affinity walk, PAR",
}  # fmt: skip
SOURCE_NAMES = {TITLES[CAM]: CAM, TITLES[CAM_AUX]: CAM_AUX}  # as a reader knows them -> as `CamSession` does


@dataclass(frozen=True)
class CamChoice:
    """What the controls ask for, in the terms of `CamSession`.

    Attributes:
        class_index: Class of the maps, 0..C-1; None is the strongest present class at each pixel.
        source: CAM the labels are made from, `cam` or `cam_aux`.
        scales, flip: What the CAM is summed over.
        low, high: Thresholds of the pseudo label and of the regions.
        background: Threshold of the CAM label.
        crop_seed: Draw of the local crops.
        block: At which attributions are read, from 1; None reads each where it is usual.
    """

    class_index: int | None
    source: str
    scales: tuple[float, ...]
    flip: bool
    low: float
    high: float
    background: float
    crop_seed: int
    block: int | None = None

    @property
    def cam(self) -> dict[str, Any]:
        """Which CAM, as keyword arguments of a session's methods."""
        return {"scales": self.scales, "flip": self.flip}


@dataclass(frozen=True)
class Refinement:
    """A refined label, (H, W), and the arguments of `CamSession.refined_label` that gave it."""

    label: Tensor
    arguments: dict[str, Any]


@dataclass(frozen=True)
class ViewPanel:
    """A view as a panel, with its IoU where it is a label and the mask is known."""

    panel: Panel
    iou: ImageIou | None = None


@dataclass(frozen=True)
class CamPanels:
    """The views of the session's image under one choice.

    Attributes:
        session: Its image is set.
        class_names: Of the classes 0..C-1.
        choice: What is asked for.
        refinement: The refined label; None until somebody asks for one.
        measure: Whether maps are measured (`CamSession.faithfulness`); else they show what was measured before.
        original_size: (H, W) of an uploaded picture before it was scaled down; None for an image of a data set.
    """

    session: CamSession
    class_names: tuple[str, ...]
    choice: CamChoice
    refinement: Refinement | None = None
    measure: bool = False
    original_size: tuple[int, int] | None = None

    def view(self, view: str) -> ViewPanel:
        """One of `VIEWS`.

        Raises:
            ValueError: For an unknown view, or where the session cannot give it.
        """
        if view not in VIEWS:
            raise ValueError(f"unknown view {view!r}; there are: {', '.join(VIEWS)}")
        if view == "image":
            return ViewPanel(Panel(self.session.image.name, self.session.image.raw, note=self.sizes))
        if view == "regions and crops":
            return ViewPanel(self._crops())
        if view in SOURCE_NAMES or view in ATTRIBUTIONS:
            return ViewPanel(self._map(view))
        if view == "truth":
            return ViewPanel(self._truth())
        return self._made_label(view)

    @property
    def sizes(self) -> str:
        """Width x height in pixels of the image as it came and, where that differs, as it is shown and read."""
        image = self.session.image
        sizes = self.original_size or image.size, image.size, tuple(image.pixels.shape[-2:])
        came, shown, read = (f"{width} x {height}" for height, width in sizes)
        if shown == read:
            return came if came == shown else f"{came}, shown and read at {read}"
        return f"{came}, read at {read}" if came == shown else f"{came}, shown at {shown}, read at {read}"

    def in_words(self, views: Sequence[ViewPanel], run: str = "") -> str:
        """These views as HTML: what each shows, and a table of IoU in per cent where there are labels and a mask.

        `run` is named first, where there are several.
        """
        image = self.session.image
        labels = ", ".join(self.class_names[index] for index in image.present) or "none"
        how = "true" if image.label_source == "true" else "predicted by the model, for nobody gave them"
        titles = "; ".join(replace(view.panel, heading="").words for view in views)
        name = f"{run}: {image.name}" if run else image.name
        words = f"{name}, {self.sizes} pixels, image labels ({how}): {labels}. Panels: {titles}."
        scored = [(view.panel.title, view.iou) for view in views if view.iou is not None]
        table = _iou_table(scored, (BACKGROUND, *self.class_names)) if scored else ""
        return f"<p>{html.escape(words)}</p>{table}"

    # --- one view each --------------------------------------------------------------------------------------------

    def _map(self, view: str) -> Panel:
        session, class_index = self.session, self.choice.class_index
        key: Hashable
        if view in ATTRIBUTIONS:
            class_index = session.image.strongest_class if class_index is None else class_index
            score, key = session.attribution(view, class_index, self.choice.block), (view, self.choice.block)
        else:
            score = session.score(SOURCE_NAMES[view], class_index, **self.choice.cam)
            key = (view, self.choice.scales, self.choice.flip)
        name = ": strongest class" if class_index is None else f": {self.class_names[class_index]}"
        knows_class = view not in ATTRIBUTIONS or ATTRIBUTIONS[view].knows_class
        name = name if knows_class else ""
        if view in ATTRIBUTIONS and self.choice.block is not None:
            name = f" (block {self.choice.block}){name}"
        note, details = _contrast(score, session.image.truth, class_index), self._details(score, class_index, key)
        if details and class_index is not None and not knows_class:  # the title does not name it
            details += f", of {self.class_names[class_index]}"
        return Panel(view + name, _array(score), note=note, details=details)

    def _details(self, score: Tensor, class_index: int | None, key: Hashable) -> str:
        """How faithful a map (H, W) is, where that was measured."""
        if class_index is None:
            return "choose one class to measure this map" if self.measure else ""
        found = self.session.faithfulness(score, class_index, key, measure=self.measure)
        if found is None:
            return ""
        pointing = {0: ", top on it", math.inf: ", flat"}.get(found.distance, f", top {found.distance:.0f} px off")
        pointing = "" if math.isnan(found.distance) else pointing
        return f"insertion {found.insertion_area:.2f}, deletion {found.deletion_area:.2f}{pointing}"

    def _truth(self) -> Panel:
        truth = self.session.image.truth
        return Panel("truth", note="no mask is known") if truth is None else self._label_panel("truth", truth)

    def _made_label(self, view: str) -> ViewPanel:
        """A label that a CAM or the decoder gives, compared with the mask where it is known."""
        if view == "refined label" and self.refinement is None:
            return ViewPanel(Panel(view, note=f"press Refine: {self._next_refinement}"))
        if view == TITLES[SEG] and not learns_segmentation(self.session.cfg):
            return ViewPanel(Panel(view, note="this run trains no decoder"))
        title, label = self._title_and_label(view)
        again = view == "refined label" and not self._refined_as_chosen
        words = [f"press Refine again: {self._next_refinement}"] if again else []
        if self.session.image.truth is None:
            return ViewPanel(self._label_panel(title, label, *words))
        iou = self.session.iou(label)
        words.insert(0, f"mIoU {100 * iou.miou:.1f} %")
        if iou.left_open > 0:
            words.insert(1, f"{100 * iou.left_open:.0f} % left open")
        return ViewPanel(self._label_panel(title, label, ", ".join(words)), iou)

    @property
    def _next_refinement(self) -> str:
        """What Refine would start from now."""
        choice = self.choice
        source = next(name for name, field in SOURCE_NAMES.items() if field == choice.source)
        scales = ", ".join(f"{scale:g}" for scale in choice.scales)
        return f"{choice.low:.2f} to {choice.high:.2f}, {source}, scales {scales}{', flip' if choice.flip else ''}"

    @property
    def _refined_as_chosen(self) -> bool:
        """Whether the controls are still where they were when the refined label was made."""
        asked, choice = self.refinement.arguments if self.refinement else {}, self.choice
        now = {"low": choice.low, "high": choice.high, "source": choice.source, **choice.cam}
        return all(
            tuple(asked[name]) == value if name == "scales" else asked[name] == value for name, value in now.items()
        )

    def _title_and_label(self, view: str) -> tuple[str, Tensor]:
        session, choice = self.session, self.choice
        if view == "CAM label":
            source = next(name for name, field in SOURCE_NAMES.items() if field == choice.source)
            label = session.label(choice.source, choice.background, **choice.cam)
            return f"{source} above {choice.background:.2f}", label
        if view == "pseudo label":
            label = session.pseudo_label(choice.low, choice.high, choice.source, **choice.cam)
            return f"pseudo label, {choice.low:.2f} to {choice.high:.2f}", label
        if view == "refined label" and self.refinement is not None:
            asked = self.refinement.arguments  # the sliders may have moved on since
            title = f"{REFINEMENTS[asked['method']]} of {asked['low']:.2f} to {asked['high']:.2f}"
            return title, self.refinement.label
        return view, session.segmentation()

    def _label_panel(self, title: str, label: Tensor, note: str = "") -> Panel:
        legend = label_legend(PALETTE, ("background", *self.class_names))
        return Panel(title, _array(label), note=note, legend=legend)

    def _crops(self) -> Panel:
        choice = self.choice
        crops = self.session.local_crops(choice.low, choice.high, choice.crop_seed, **choice.cam)
        drawn = zip(crops.top[0].tolist(), crops.left[0].tolist(), crops.kind[0].int().tolist(), strict=True)
        boxes = [CropBox(top, left, crops.size, kind) for top, left, kind in drawn]
        kinds = [box.kind for box in boxes]
        note = f"{kinds.count(POSITIVE)} positive, {kinds.count(NEGATIVE)} negative"
        note += f", {kinds.count(IGNORED)} ignored" if IGNORED in kinds else ""
        return Panel(
            "regions and crops",
            _array(self.session.region(choice.low, choice.high, **choice.cam)),
            note=f"{note}, draw {choice.crop_seed}",
            legend=REGIONS,
            crops=boxes,
        )


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


def _contrast(score: Tensor, truth: Tensor | None, class_index: int | None) -> str:
    """Mean score (H, W) on the object (a class; None: any) and on the ground, where the mask (H, W) tells them apart.

    A good map is brighter on the object; one whose two numbers are the other way round is inverted.
    """
    if truth is not None:
        inside = (truth == class_index + 1) if class_index is not None else (truth > 0) & (truth != IGNORE_INDEX)
        on, off = ((score * where).sum() / where.sum() for where in (inside, truth == 0))  # NaN where there is none
        if not (on.isnan() or off.isnan()):
            return f"mean: object {on:.2f}, ground {off:.2f}"
    return f"mean {score.mean():.2f}"


def _iou_table(scored: Sequence[tuple[str, ImageIou]], names: Sequence[str]) -> str:
    """An HTML table: a row per label (title, IoU), a column per class that any of them has a score for."""
    used = [i for i in range(len(names)) if any(not iou.iou[i].isnan() for _, iou in scored)]
    head = ["IoU, %", "mean", *(names[i] for i in used), "left open, %"]
    rows = [[title, *map(_per_cent, [iou.miou, *iou.iou[used].tolist(), iou.left_open])] for title, iou in scored]
    lines = [_html_row(head, "th"), *(_html_row(row, "td") for row in rows)]
    return f"<table style='border-spacing: 1em 0'>{''.join(lines)}</table>"


def _per_cent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _html_row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
