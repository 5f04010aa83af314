"""A widget to ask one image after the other: where does the model see the class, and what label becomes of it?

Controls (`cam_controls`) -> `CamSession` -> panels (`cam_panels`) -> one PNG (`panels.panel_row`): this file is what
happens between them when a control moves. It works without a browser as well: set a control's `value`, read
`picture.value`, or take `figure()`.
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
from toco_lab.explorers.cam_controls import CamControls, one_of
from toco_lab.explorers.cam_panels import SOURCE_NAMES, CamPanels, Refinement, ViewPanel
from toco_lab.explorers.cam_runs import OpenRun, Run, config_of, open_run, runs_by_name
from toco_lab.explorers.cam_session import CamSession
from toco_lab.explorers.panels import Figure, Panel, as_figure, panel_row, png_bytes
from toco_lab.explorers.uploads import decode_image
from toco_lab.files import atomic_write
from toco_lab.runs.run_dir import RunDir

_SIDE = 290  # longer side of a panel, in pixels: four fit beside each other in a notebook


@dataclass(frozen=True)
class _Upload:
    """The bytes of an uploaded file, and the size (H, W) of its picture in pixels, before it is scaled down."""

    content: bytes
    size: tuple[int, int]


class CamExplorer(CamControls):
    """Pick a run, an image and what to see of it; move thresholds and watch the pseudo label and its IoU.

    Example:
        `CamExplorer(RunDir("results/demo/toco"))` as the last line of a cell.

    Attributes:
        run_picker, image_picker, image_slider, upload: Which model looks at which image.
        class_picker, source, scale_boxes, flip: Which CAM.
        block: At which block attributions are read.
        low, high, background, opacity: Sliders.
        views: Toggle button of each of `VIEWS`.
        refine_par, refine_crf, other_crops, measure_button, save_button: Actions.
        picture: The Image widget.
        message: What went wrong and what to do about it, or what a control did on its own.
        text: The picture in words and numbers, also for who cannot see it.
    """

    def __init__(self, runs: Run | Sequence[Run], *, split: str | None = None, num_images: int = 24) -> None:
        """Opens the first run and shows its first image.

        Args:
            runs: A run or several, each a folder or a pair (model, config).
            split: None takes each run's `val_split`.
            num_images: How many images of the split are on offer, from the first on; others can be uploaded.
        """
        self._runs, self._split, self._num_images = runs_by_name(runs), split, num_images
        self._opened: dict[str, OpenRun] = {}
        self._uploads: dict[str, _Upload] = {}
        self._encoded: dict[str, str] = {}  # run -> image its session has
        self._shown: tuple[str, str] | None = None  # run and image of the picture
        self._refinement: Refinement | None = None
        self._pixels: np.ndarray | None = None
        super().__init__(list(self._runs), config_of(next(iter(self._runs.values()))))
        self._open_run()
        self._observe()

    # --- for a program ------------------------------------------------------------------------------------------

    @property
    def session(self) -> CamSession:
        """The session of the run that is shown."""
        return self._chosen_run.session

    def settings(self) -> dict[str, Any]:
        """Everything that makes the picture, in JSON's types; `apply` brings it back."""
        refined = None if self._refinement is None else self._refinement.arguments
        return self._read_settings(self._chosen_run.class_names) | {"refined": refined}

    def apply(self, settings: Mapping[str, Any]) -> None:
        """Set some or all of what `settings` holds.

        Raises:
            ValueError: For an unknown name or a value that does not exist; run and image may have changed by then.
        """
        before = self.settings()
        if unknown := set(settings) - set(before):
            raise ValueError(f"unknown settings {', '.join(sorted(unknown))}; there are: {', '.join(before)}")
        new = before | dict(settings)
        with self._quietly():
            self.run_picker.value = one_of("run", new["run"], self.run_picker.options)
        self._open_run()
        with self._quietly():
            self.image_picker.value = one_of("image", new["image"], self.image_picker.options)
        self._show_image()
        self._write_settings(new, self._chosen_run.class_names)
        self._refinement = None if new["refined"] is None else self._refine(**new["refined"])
        self._update()

    def panel(self, view: str) -> Panel:
        """One of `VIEWS` as it is now, to be drawn beside others by `panels.panel_row`."""
        return self._view(view).panel

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
        self.run_picker.observe(lambda _: self._open_run(), "value")
        self.image_picker.observe(lambda _: self._show_image(), "value")
        self.upload.observe(lambda _: self._take_upload(), "value")
        for threshold in (self.low, self.high):
            threshold.observe(self._threshold_moved, "value")
        quick = [
            self.class_picker,
            self.source,
            self.block,
            self.flip,
            self.background,
            self.opacity,
            *self.views.values(),
        ]
        for control in quick:
            control.observe(lambda _: self._update(), "value")
        self.refine_par.on_click(lambda _: self._refine_clicked("par"))
        self.refine_crf.on_click(lambda _: self._refine_clicked("crf"))
        self.other_crops.on_click(lambda _: self._draw_other_crops())
        self.measure_button.on_click(lambda _: self._measure_clicked())
        self.save_button.on_click(lambda _: self._save_clicked())

    def _open_run(self) -> None:
        """Load the chosen run once, offer its images and scales, and show the image."""
        if self._quiet:
            return
        name = self.run_picker.value
        with self._working(f"opening {name}"):
            if name not in self._opened:
                self._opened[name] = open_run(self._runs[name], self._split)
            self._offer_what_the_run_has()
        self._show_image()

    def _offer_what_the_run_has(self) -> None:
        self._offer_images(self._chosen_run.image_names(self._num_images) + list(self._uploads))
        self._offer_scales(self.session.scales, self._scale_ticked)
        self._offer_blocks(len(blocks_of(self.session.model.encoder)))

    def _show_image(self) -> None:
        """Encode the chosen image, unless the run's session has it already. If that fails the picture stays."""
        if self._quiet:
            return
        run, name = self.run_picker.value, self.image_picker.value
        if run in self._opened and name is not None:
            with self._working(f"encoding {name}"):
                if self._encoded.get(run) != name:
                    self._encode(name)
                    self._encoded[run] = name
        if run not in self._opened or name is None or self._encoded.get(run) != name:
            self._restore_pickers()
            if run in self._opened and name is None:
                self._say(self._opened[run].problem, problem=True)
            return
        if (run, name) != self._shown:
            self._refinement = None
        self._shown = run, name
        self._offer_classes(self._chosen_run.class_names, self.session.image.present)
        self._update()

    def _encode(self, name: str) -> None:
        session, samples = self.session, self._chosen_run.samples
        if name in self._uploads:
            content = self._uploads[name].content
            session.set_image(decode_image(content, longest_side=session.longest_side), name=name)
        elif samples is not None:
            session.set_sample(samples[self.image_picker.index])

    def _restore_pickers(self) -> None:
        """Set the pickers back to what the picture shows."""
        if self._shown is None:
            return
        with self._quietly():
            self.run_picker.value = self._shown[0]
            self._offer_what_the_run_has()
            self.image_picker.value = self._shown[1]

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
        with self._working(f"refining ({method.upper()})"):
            self._refinement = self._refine(
                low=self.low.value, high=self.high.value, source=self.source.value, method=method,
                scales=list(self._chosen_scales), flip=self.flip.value,
            )  # fmt: skip
            with self._quietly():
                self.views["refined label"].value = True
            self._update()

    def _refine(self, **arguments: Any) -> Refinement:
        return Refinement(self.session.refined_label(**arguments), arguments)

    def _draw_other_crops(self) -> None:
        self._crop_seed += 1
        with self._quietly():
            self.views["regions and crops"].value = True
        self._update()

    def _measure_clicked(self) -> None:
        with self._working("measuring the maps"):
            if self._has_maps():
                self._update(measure=True)
            else:
                self._say("no map is shown: switch on CAM, Grad-CAM or another one")

    def _has_maps(self) -> bool:
        maps = {*SOURCE_NAMES, *ATTRIBUTIONS}
        return any(toggle.value for view, toggle in self.views.items() if view in maps)

    def _save_clicked(self) -> None:
        with self._working("saving"):
            self._say(f"saved as {self.save()}")

    # --- the picture --------------------------------------------------------------------------------------------

    def _update(self, note: str = "", *, measure: bool = False) -> None:
        """Read the controls, ask the session, draw. A view that fails leaves its panel empty and says why.

        With `measure` the maps that are shown say how faithful they are; what was measured is shown again later.
        """
        if self._quiet or self._shown is None:
            return
        chosen = [view for view, toggle in self.views.items() if toggle.value] or ["image"]
        self.block.disabled = not set(chosen) & set(ATTRIBUTIONS)
        shown, problems = [], []
        for view in chosen:
            try:
                shown.append(self._view(view, measure=measure))
            except Exception as error:  # whatever it is: raised in a callback it would vanish
                shown.append(ViewPanel(Panel(view, note="see the message above")))
                problems.append(f"{view}: {error}")
        panels = [view.panel for view in shown]
        self._pixels = panel_row(self.session.image.raw, panels, opacity=self.opacity.value, side=_SIDE)
        self.picture.value = png_bytes(self._pixels)
        self.text.value = self._panels().in_words(shown)
        self._say("; ".join(filter(None, [*problems, note])), problem=bool(problems))

    def _view(self, view: str, *, measure: bool = False) -> ViewPanel:
        with self._busy(f"computing {view}") if view in ATTRIBUTIONS else nullcontext():
            return replace(self._panels(), measure=measure).view(view)

    def _panels(self) -> CamPanels:
        upload = self._uploads.get(self.session.image.name)
        return CamPanels(
            self.session,
            self._chosen_run.class_names,
            self._choice(),
            self._refinement,
            original_size=None if upload is None else upload.size,
        )

    def _drawn_pixels(self) -> np.ndarray:
        if self._pixels is None:
            raise RuntimeError("there is no picture yet: choose or upload an image")
        return self._pixels

    @property
    def _chosen_run(self) -> OpenRun:
        run = self.run_picker.value
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
