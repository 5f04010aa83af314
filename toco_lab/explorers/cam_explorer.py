"""A widget to ask one image after the other: where does a model see the class, and what label becomes of it?

Controls (`cam_controls`) -> `CamSession` -> panels (`cam_panels`) -> one PNG (`panels.panel_row`): this file is what
happens between them when a control moves. Two runs may stand side by side: one image, one class and one set of
sliders, each with its own model. It works without a browser as well: set a control's `value`, read `picture.value`, or
take `figure()`.
"""

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from toco_lab.attribution.catalogue import ATTRIBUTIONS
from toco_lab.backbones.kinds import blocks_of
from toco_lab.explorers.cam_controls import NO_RUN, STRONGEST, CamControls, one_of
from toco_lab.explorers.cam_panels import READ_BY, REFINEMENTS, CamPanels, Refinement, ViewPanel
from toco_lab.explorers.cam_runs import OpenRun, Run, SharedImage, config_of, open_run, runs_by_name
from toco_lab.explorers.cam_session import CamSession
from toco_lab.explorers.panels import Figure, Panel, as_figure, draw_panels, png_bytes
from toco_lab.explorers.uploads import decode_image
from toco_lab.files import atomic_write
from toco_lab.peers.refinement import WORDS, refinements_of
from toco_lab.runs.run_dir import RunDir

_SIDE = 290  # longer side of a panel, in pixels: four fit beside each other in a notebook
_COLUMNS = 4
_SHARED = ("truth",)  # views that all runs have in common: shown once


@dataclass(frozen=True)
class _Upload:
    """The bytes of an uploaded file, and the size (H, W) of its picture in pixels, before it is scaled down."""

    content: bytes
    size: tuple[int, int]


class CamExplorer(CamControls):
    """Pick a run or two, an image and what to see of it; move thresholds and watch the pseudo label and its IoU.

    Example:
        `CamExplorer(RunDir("results/demo/toco"), RunDir("results/demo/baseline"))` as the last line of a cell.

    Attributes:
        run_picker, beside, image_picker, image_slider, upload: Which models look at which image.
        class_picker, source, scale_boxes, flip: Which CAM.
        block: At which block attributions are read.
        low, high, background, opacity: Sliders.
        idle: Which of these have no effect on what is shown, and are disabled.
        views: Toggle button of each of `VIEWS`.
        refinement: Dropdown, by what the refined label is made.
        refine, other_crops, measure_button, save_button: Actions.
        picture: The panels, and all of them as one PNG in its `value`.
        message: What went wrong and what to do about it, or what a control did on its own.
        text: The picture in words and numbers, also for who cannot see it.
    """

    def __init__(self, *runs: Run | Sequence[Run], split: str | None = None, num_images: int = 24) -> None:
        """Opens the first run, and the second if there is one, and shows the first image.

        Args:
            runs: Runs, or lists of them, each a folder or a pair (model, config). Two are shown side by side.
            split: None takes each run's `val_split`.
            num_images: How many images of the split of the first run are on offer, from the first on; others can be
                uploaded.
        """
        self._runs, self._split, self._num_images = runs_by_name(*runs), split, num_images
        self._opened: dict[str, OpenRun] = {}
        self._uploads: dict[str, _Upload] = {}
        self._encoded: dict[str, SharedImage] = {}  # run -> image its session has
        self._shown: tuple[tuple[str, ...], str] | None = None  # runs and image of the picture
        self._followed: int | None = None  # class that an upload has set, until somebody sets another
        self._refinements: dict[str, Refinement] = {}  # by run
        self._pixels: np.ndarray | None = None
        super().__init__(list(self._runs), config_of(next(iter(self._runs.values()))))
        self._open_runs()
        self._observe()
        if len(self._runs) > 1 and self._shown is not None:
            self.beside.value = list(self._runs)[1]

    # --- for a program ------------------------------------------------------------------------------------------

    @property
    def session(self) -> CamSession:
        """The session of the first run that is shown."""
        return self._chosen_run.session

    @property
    def sessions(self) -> dict[str, CamSession]:
        """The session of each run that is shown."""
        return {name: self._open(name).session for name in self._chosen}

    def settings(self) -> dict[str, Any]:
        """Everything that makes the picture, in JSON's types; `apply` brings it back."""
        refined = next((one.arguments for one in self._refinements.values()), None)
        return self._read_settings(self._chosen_run.class_names) | {"refined": refined}

    def apply(self, settings: Mapping[str, Any]) -> None:
        """Set some or all of what `settings` holds.

        Raises:
            ValueError: For an unknown name or a value that does not exist; runs and image may have changed by then.
        """
        before = self.settings()
        if unknown := set(settings) - set(before):
            raise ValueError(f"unknown settings {', '.join(sorted(unknown))}; there are: {', '.join(before)}")
        new = before | dict(settings)
        with self._quietly():
            self.run_picker.value = one_of("run", new["run"], self.run_picker.options)
            self._offer_runs(self.run_picker.options)
            self.beside.value = one_of(
                "run beside it", new["beside"] or NO_RUN, [value for _, value in self.beside.options]
            )
        self._open_runs()
        with self._quietly():
            self.image_picker.value = one_of("image", new["image"], self.image_picker.options)
        self._show_image()
        self._write_settings(new, self._chosen_run.class_names)
        self._refinements = {} if new["refined"] is None else self._refine(**new["refined"])
        self._update()

    def panel(self, view: str, run: str | None = None) -> Panel:
        """One of `VIEWS` as it is now, to be drawn beside others by `panels.panel_row`.

        Args:
            view: Name of the view.
            run: Name of a run that is shown; None takes the first.
        """
        return self._view(view, one_of("run", self.run_picker.value if run is None else run, self._chosen)).panel

    def figure(self) -> Figure:
        """The picture that is shown, as a matplotlib Figure."""
        return as_figure(self._drawn_pixels())

    def save(self, path: Path | str | None = None) -> Path:
        """Write the picture as a PNG that holds `settings()` in its text chunk `settings`.

        `path`: None takes `figures/cam_explorer_<image>.png` in the folder of the run, or in the current one.
        """
        pixels = self._drawn_pixels()
        if path is None:
            run = self._runs[self.run_picker.value]
            name = re.sub(r"[^\w.-]+", "_", Path(self.image_picker.value).stem)
            path = (run.path if isinstance(run, RunDir) else Path()) / "figures" / f"cam_explorer_{name}.png"
        with atomic_write(path) as file:
            file.write(png_bytes(pixels, text={"settings": json.dumps(self.settings())}))
        return Path(path)

    # --- reactions ----------------------------------------------------------------------------------------------

    def _observe(self) -> None:
        self.run_picker.observe(self._run_picked, "value")
        self.beside.observe(lambda _: self._open_runs(), "value")
        self.image_picker.observe(lambda _: self._show_image(), "value")
        self.upload.observe(lambda _: self._take_upload(), "value")
        for threshold in (self.low, self.high):
            threshold.observe(self._threshold_moved, "value")
        self.class_picker.observe(lambda _: self._class_picked(), "value")
        quick = [self.source, self.block, self.flip, self.background, self.opacity, *self.views.values()]
        for control in quick:
            control.observe(lambda _: self._update(), "value")
        self.refine.on_click(lambda _: self._refine_clicked(self.refinement.value))
        self.other_crops.on_click(lambda _: self._draw_other_crops())
        self.measure_button.on_click(lambda _: self._measure_clicked())
        self.save_button.on_click(lambda _: self._save_clicked())

    def _run_picked(self, change: Any) -> None:
        """The run that stood beside the old one changes places with it, if it is the one that was picked."""
        if self._quiet:
            return
        swapped = change["new"] == self.beside.value
        self._offer_runs(self.run_picker.options)
        if swapped:
            with self._quietly():
                self.beside.value = change["old"]
        self._open_runs()

    def _open_runs(self) -> None:
        """Load the chosen runs once, offer the images and scales of the first, and show the image."""
        if self._quiet:
            return
        for name in self._chosen:
            with self._working(f"opening {name}"):
                if name not in self._opened:
                    self._opened[name] = open_run(self._runs[name], self._split)
        if self.run_picker.value in self._opened:
            self._offer_what_the_run_has()
        self._show_image()

    def _offer_what_the_run_has(self) -> None:
        self._offer_images(self._chosen_run.image_names(self._num_images) + list(self._uploads))
        self._offer_scales(self.session.scales, self._scale_ticked)
        opened = [self._opened[run].session for run in self._chosen if run in self._opened]
        # what every run has
        self._offer_blocks(min(len(blocks_of(session.model.encoder)) for session in opened))
        able = [refinements_of(session.cfg) for session in opened]
        self._offer_refinements([word for word in WORDS if all(word in words for words in able)])

    def _show_image(self) -> None:
        """Encode the chosen image, by each run that does not have it already. If that fails the picture stays."""
        if self._quiet:
            return
        runs, name = self._chosen, self.image_picker.value
        opened, done = all(run in self._opened for run in runs), False
        if opened and name is not None:
            with self._working(f"encoding {name}"):
                self._encode(name)
                done = True
        if not done:
            self._restore_pickers()
            if opened and name is None:
                self._say(self._chosen_run.problem, problem=True)
            return
        if (runs, name) != self._shown:
            self._refinements = {}
        self._shown = runs, name
        self._offer_the_classes()
        self._update()

    def _encode(self, name: str) -> None:
        """Every chosen run gets the same picture."""
        sessions = self.sessions
        image = self._chosen_run.sample(self.image_picker.index) if name not in self._uploads else None
        if image is None:
            longest = min(session.longest_side for session in sessions.values())
            image = SharedImage(name, decode_image(self._uploads[name].content, longest_side=longest))
        for run, session in sessions.items():
            own = image if self._open(run).class_names == self._chosen_run.class_names else image.without_labels()
            if own != self._encoded.get(run):
                own.set_in(session)
                self._encoded[run] = own

    def _offer_the_classes(self) -> None:
        """What is present first. After an upload the class that the model is surest of is shown."""
        image, names = self.session.image, self._chosen_run.class_names
        known = image.label_source == "true"
        scores = image.output.logits[0].sigmoid().tolist()
        how = {index: "present" if known else f"predicted, {100 * scores[index]:.0f} %" for index in image.present}
        self._offer_classes(names, how)
        chosen = self.class_picker.value
        if self._followed is not None and chosen == self._followed:
            chosen = STRONGEST
        self._followed = None
        if not known and chosen not in image.present:
            chosen = self._followed = image.strongest_class
        with self._quietly():
            self.class_picker.value = chosen

    def _class_picked(self) -> None:
        if not self._quiet:
            self._followed = None
            self._update()

    def _restore_pickers(self) -> None:
        """Set the pickers back to what the picture shows."""
        if self._shown is None:
            return
        (first, *second), name = self._shown
        with self._quietly():
            self.run_picker.value = first
            self._offer_runs(self.run_picker.options)
            self.beside.value = second[0] if second else NO_RUN
            self._offer_what_the_run_has()
            self.image_picker.value = name

    def _take_upload(self) -> None:
        if not self.upload.value:
            return
        file = self.upload.value[0]
        with self._quietly():
            self.upload.value = ()
        with self._working("reading the upload"):
            content = bytes(file["content"])
            height, width, _ = decode_image(content, longest_side=None).shape  # a damaged file must not be on offer
            name = f"upload {len(self._uploads) + 1}: {file['name']}"
            self._uploads[name] = _Upload(content, (height, width))
            with self._quietly():
                self._offer_what_the_run_has()
                self.image_picker.value = name
            self._show_image()

    def _threshold_moved(self, change: Any) -> None:
        if not self._quiet:
            self._update(self._keep_order(change["owner"]))

    def _scale_ticked(self, change: Any) -> None:
        if not self._quiet:
            self._update(self._keep_a_scale(change["owner"]))

    def _refine_clicked(self, method: str) -> None:
        with self._working(f"refining ({REFINEMENTS[method]})"):
            self._refinements = self._refine(
                low=self.low.value, high=self.high.value, source=self.source.value, method=method,
                scales=list(self._chosen_scales), flip=self.flip.value,
            )  # fmt: skip
            with self._quietly():
                self.views["refined label"].value = True
            self._update()

    def _refine(self, **arguments: Any) -> dict[str, Refinement]:
        return {
            run: Refinement(session.refined_label(**arguments), arguments) for run, session in self.sessions.items()
        }

    def _draw_other_crops(self) -> None:
        self._crop_seed += 1
        with self._quietly():
            self.views["regions and crops"].value = True
        self._update()

    def _measure_clicked(self) -> None:
        with self._working("measuring the maps"):
            if any(self.views[view].value for view in READ_BY["measure_button"]):
                self._update(measure=True)
            else:
                self._say("no map is shown: switch on CAM, Grad-CAM or another one")

    def _save_clicked(self) -> None:
        with self._working("saving"):
            self._say(f"saved as {self.save()}")

    # --- the picture --------------------------------------------------------------------------------------------

    def _update(self, note: str = "", *, measure: bool = False) -> None:
        """Read the controls, ask the sessions, draw.

        With `measure` the maps that are shown say how faithful they are; what was measured is shown again later.
        """
        if self._quiet or self._shown is None:
            return
        chosen = [view for view, toggle in self.views.items() if toggle.value] or ["image"]
        rows: list[list[Panel | None]] = []
        words: list[str] = []
        problems: list[str] = []
        for run in self._chosen:
            shown = {
                view: self._view_or_problem(view, run, problems, measure=measure)
                for view in chosen if self._is_shown(view, run)
            }  # fmt: skip
            rows.append([shown[view].panel if view in shown else None for view in chosen])
            words.append(self._panels(run).in_words(list(shown.values()), run if len(self._chosen) > 1 else ""))
        columns = min(len(chosen), _COLUMNS)
        places = [panel for row in rows for panel in [*row, *[None] * (-len(row) % columns)]]
        drawn = draw_panels(self.session.image.raw, places, opacity=self.opacity.value, columns=columns, side=_SIDE)
        self._pixels = drawn.pixels
        self._switch_off_idle(maps=any(panel and panel.array is not None and panel.array.ndim == 2 for panel in places))
        self.picture.show(drawn, rows, columns)
        self.text.value = "".join(words)
        self._say("; ".join(filter(None, [*problems, note])), problem=bool(problems))

    def _is_shown(self, view: str, run: str) -> bool:
        return view not in _SHARED or run == self.run_picker.value

    def _view_or_problem(self, view: str, run: str, problems: list[str], *, measure: bool) -> ViewPanel:
        """A view; one that fails is an empty panel, and adds why to `problems`."""
        several = len(self._chosen) > 1
        try:
            shown = self._view(view, run, measure=measure)
        except Exception as error:  # whatever it is: raised in a callback it would vanish
            shown = ViewPanel(Panel(view, note="see the message above"))
            problems.append(f"{run}, {view}: {error}" if several else f"{view}: {error}")
        heading = (run if view not in _SHARED else "all runs") if several else ""
        return replace(shown, panel=replace(shown.panel, heading=heading))

    def _view(self, view: str, run: str, *, measure: bool = False) -> ViewPanel:
        with self._busy(f"computing {view}") if view in ATTRIBUTIONS else nullcontext():
            return replace(self._panels(run, view), measure=measure).view(view)

    def _panels(self, run: str, view: str = "") -> CamPanels:
        opened = self._open(run)
        upload = self._uploads.get(opened.session.image.name)
        return CamPanels(
            opened.session,
            opened.class_names,
            replace(self._choice(), class_index=self._class_of(run, view)),
            self._refinements.get(run),
            original_size=None if upload is None else upload.size,
        )

    def _class_of(self, run: str, view: str) -> int | None:
        """Index of the chosen class among those of a run, which may number them in another way."""
        index, names = self._choice().class_index, self._open(run).class_names
        name = None if index is None else self._chosen_run.class_names[index]
        if name is None or name in names:
            return None if name is None else names.index(name)
        if view in READ_BY["class_picker"]:
            raise ValueError(f"this run does not know the class {name!r}")
        return None

    def _drawn_pixels(self) -> np.ndarray:
        if self._pixels is None:
            raise RuntimeError("there is no picture yet: choose or upload an image")
        return self._pixels

    @property
    def _chosen(self) -> tuple[str, ...]:
        """Names of the runs to show, one or two."""
        return (self.run_picker.value, *([self.beside.value] if self.beside.value != NO_RUN else []))

    @property
    def _chosen_run(self) -> OpenRun:
        return self._open(self.run_picker.value)

    def _open(self, run: str) -> OpenRun:
        if run not in self._opened:
            raise RuntimeError(f"{run} is not open; choose another run, or mend what the message says")
        return self._opened[run]

    # --- what is going on ---------------------------------------------------------------------------------------

    @contextmanager
    def _busy(self, what: str) -> Iterator[None]:
        self.progress.value = f'<span role="status">⏳ {html.escape(what)} …</span>'
        try:
            yield
        finally:
            self.progress.value = ""

    @contextmanager
    def _working(self, what: str) -> Iterator[None]:
        """Says what is going on, and what went wrong."""
        with self._busy(what), self._saying_errors(what):
            yield
