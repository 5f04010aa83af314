"""A widget to ask one image after the other: where does the model see the class, and what label becomes of it?

Controls -> `CamSession` -> `panels.panel_row` -> PNG bytes of one Image widget; nothing is computed or drawn elsewhere.
It works without a browser as well: set a control's `value`, read `picture.value`, or take `figure()`.
"""

import html
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import traitlets
from torch import Tensor

from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.data.classes import PALETTE, class_names
from toco_lab.data.loader import EvalSamples, eval_samples
from toco_lab.explorers.attribution import ATTRIBUTIONS
from toco_lab.explorers.cam_session import CamSession, ImageIou, decode_image
from toco_lab.explorers.controls import KeepsKeys
from toco_lab.explorers.panels import REGIONS, CropBox, Figure, Panel, as_figure, label_legend, panel_row, png_bytes
from toco_lab.files import atomic_write
from toco_lab.method.model import ToCo
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model
from toco_lab.training.processes import resolve_device
from toco_lab.vocabulary import CAM, CAM_AUX, SEG, TITLES

VIEWS = {  # view -> what its button says when pointed at
    "image": "the image as it is",
    TITLES[CAM]: "class activation map of the final patch tokens",
    TITLES[CAM_AUX]: "class activation map of the auxiliary tokens, from an earlier layer",
    "CAM label": "the strongest class where the CAM exceeds the background threshold",
    "pseudo label": "class above high, background at or below low, left open between them",
    "refined label": "the pseudo label after PAR or CRF; press one of the Refine buttons",
    TITLES[SEG]: "what the decoder predicts in one pass",
    "truth": "the mask, which training never sees",
    "regions and crops": "uncertain regions of the auxiliary CAM, and local crops that class token contrast could draw",
} | {name: f"{name} of the chosen class" for name in ATTRIBUTIONS}
FIRST_VIEWS = (TITLES[CAM], TITLES[CAM_AUX], "pseudo label", "truth")
STRONGEST = -1  # value of the class picker: the strongest present class, at each pixel
SOURCE_NAMES = {TITLES[CAM]: CAM, TITLES[CAM_AUX]: CAM_AUX}
_STEP = 0.01  # of the sliders
_SIDE = 290  # longer side of a panel, in pixels: four fit beside each other in a notebook

Run = RunDir | tuple[ToCo, Config]


@dataclass(frozen=True)
class _Opened:
    """A run whose model is loaded; `samples` is None and `problem` says why where its data are not there."""

    session: CamSession
    class_names: tuple[str, ...]
    samples: EvalSamples | None
    problem: str


@dataclass(frozen=True)
class _Upload:
    """The bytes of an uploaded file, and the size (H, W) of its picture in pixels, before it is scaled down."""

    content: bytes
    size: tuple[int, int]


class CamExplorer(widgets.VBox):
    """Pick a run, an image and what to see of it; move thresholds and watch the pseudo label and its IoU.

    Example:
        `CamExplorer(RunDir("results/demo/toco"))` as the last line of a cell.

    Attributes:
        run_picker, image_picker, image_slider, upload: Which model looks at which image.
        class_picker, source, scale_boxes, flip: Which CAM.
        low, high, background, opacity: Sliders.
        views: Toggle button of each of `VIEWS`.
        refine_par, refine_crf, other_crops, save_button: Actions.
        picture: The Image widget.
        message: What went wrong and what to do about it, or what a control did on its own.
        text: The picture in words and numbers, also for who cannot see it.
    """

    def __init__(self, runs: Run | Sequence[Run], *, split: str | None = None, num_images: int = 24) -> None:
        """Opens the first run and shows its first image.

        Args:
            runs: A run or several, each a folder or a pair (model, config).
            split: None takes each run's `val_split`.
            num_images: The first so many images of the split are on offer; further ones can be uploaded.
        """
        self._runs, self._split, self._num_images = _named(runs), split, num_images
        self._opened: dict[str, _Opened] = {}
        self._uploads: dict[str, _Upload] = {}
        self._encoded: dict[str, str] = {}  # run -> image its session has
        self._shown: tuple[str, str] | None = None  # run and image of the picture
        self._refinement: dict[str, Any] | None = None  # arguments of the refined label that is shown
        self._refined: Tensor | None = None
        self._pixels: np.ndarray | None = None
        self._crop_seed, self._held = 0, False
        self._make_controls()
        super().__init__(self._arranged())
        self._open_run()
        self._observe()

    # --- for a program ------------------------------------------------------------------------------------------

    @property
    def session(self) -> CamSession:
        """The session of the run that is shown."""
        run = self.run_picker.value
        if run not in self._opened:
            raise RuntimeError(f"{run} is not open; choose another run, or mend what the message says")
        return self._opened[run].session

    def settings(self) -> dict[str, Any]:
        """Everything that makes the picture, in JSON's types; `apply` brings it back."""
        return {
            "run": self.run_picker.value,
            "image": self.image_picker.value,
            "class": None if self.class_picker.value == STRONGEST else self._names[self.class_picker.value],
            "source": self.source.value,
            "scales": list(self._scales),
            "flip": self.flip.value,
            "low": self.low.value,
            "high": self.high.value,
            "background": self.background.value,
            "opacity": self.opacity.value,
            "crop_seed": self._crop_seed,
            "views": [view for view, button in self.views.items() if button.value],
            "refined": self._refinement,
        }

    def apply(self, settings: Mapping[str, Any]) -> None:
        """Set some or all of what `settings` holds.

        Raises:
            ValueError: For an unknown name or a value that does not exist; some controls may have changed by then.
        """
        unknown = set(settings) - set(self.settings())
        if unknown:
            raise ValueError(f"unknown settings {', '.join(sorted(unknown))}; there are: {', '.join(self.settings())}")
        new = self.settings() | dict(settings)
        with self._holding():
            self.run_picker.value = _one_of("run", new["run"], self.run_picker.options)
        self._open_run()
        with self._holding():
            self.image_picker.value = _one_of("image", new["image"], self.image_picker.options)
        self._show_image()
        with self._holding():
            if new["class"] is not None:
                _one_of("class", new["class"], self._names)
            self.class_picker.value = STRONGEST if new["class"] is None else self._names.index(new["class"])
            for scale in new["scales"]:
                _one_of("scale", scale, self.session.scales)
            for scale, box in zip(self.session.scales, self.scale_boxes.children, strict=True):
                box.value = scale in new["scales"]
            low, high = new["low"], new["high"]
            if not 0 <= low < high <= 1:
                raise ValueError(f"need 0 <= low < high <= 1, got {low} and {high}")
            for name in ("source", "flip", "low", "high", "background", "opacity"):
                getattr(self, name).value = new[name]
            for view in new["views"]:
                _one_of("view", view, self.views)
            for view, button in self.views.items():
                button.value = view in new["views"]
            self._crop_seed = new["crop_seed"]
        self._refinement = self._refined = None
        if new["refined"] is not None:
            self._refine(**new["refined"])
        self._update()

    def panel(self, view: str) -> Panel:
        """One of `VIEWS` as it is now, to be drawn beside others by `panels.panel_row`."""
        return self._look(view).panel

    def figure(self) -> Figure:
        """The picture that is shown, as a matplotlib Figure."""
        if self._pixels is None:
            raise RuntimeError("there is no picture yet: choose or upload an image")
        return as_figure(self._pixels)

    def save(self, path: Path | str | None = None) -> Path:
        """Write the picture as a PNG that holds `settings()` in its text chunk `settings`.

        `path`: None takes `figures/cam_explorer_<image>.png` in the folder of the run, or in the current one.
        """
        if self._pixels is None:
            raise RuntimeError("there is no picture yet: choose or upload an image")
        if path is None:
            run = self._runs[self.run_picker.value]
            name = re.sub(r"[^\w.-]+", "_", Path(self.image_picker.value).stem)
            path = (run.path if isinstance(run, RunDir) else Path()) / "figures" / f"cam_explorer_{name}.png"
        with atomic_write(path) as file:
            file.write(png_bytes(self._pixels, text={"settings": json.dumps(self.settings())}))
        return Path(path)

    # --- controls -----------------------------------------------------------------------------------------------

    def _make_controls(self) -> None:
        wide = {"layout": {"width": "260px"}, "style": {"description_width": "initial"}}

        def slider(name: str, value: float, tooltip: str) -> widgets.FloatSlider:
            # moves may come while the kernel is busy: the browser keeps back all but the last of them
            return widgets.FloatSlider(
                value, min=0, max=1, step=_STEP, description=name, tooltip=tooltip, continuous_update=True, **wide
            )

        def button(name: str, icon: str, tooltip: str) -> widgets.Button:
            return widgets.Button(description=name, icon=icon, tooltip=tooltip)

        self.run_picker = widgets.Dropdown(options=list(self._runs), description="run", tooltip="trained model", **wide)
        self.image_picker = widgets.Dropdown(description="image", tooltip="image by name", **wide)
        self.image_slider = widgets.IntSlider(
            min=0, max=0, description="number", tooltip="image by number", continuous_update=False, **wide
        )
        self.upload = widgets.FileUpload(
            accept="image/*",
            multiple=False,
            description="upload",
            tooltip="an image of your own; it stays in the kernel",
        )
        self.class_picker = widgets.Dropdown(
            options=[("strongest present class", STRONGEST)], description="class", tooltip="whose CAM", **wide
        )
        self.source = widgets.Dropdown(
            options=SOURCE_NAMES, description="labels from", tooltip="which CAM the labels are made from", **wide
        )
        self.scale_boxes = widgets.HBox()
        self.flip = widgets.Checkbox(
            value=True, indent=False, description="flip", tooltip="also the mirror image", layout={"width": "70px"}
        )
        cfg = _config(self._runs[self.run_picker.value])
        self.low = slider("low", cfg.low_threshold, "CAM score at or below this is background")
        self.high = slider("high", cfg.high_threshold, "CAM score above this is an object")
        self.background = slider("background", cfg.background_threshold, "the one threshold of the CAM label")
        self.opacity = slider("opacity", 0.6, "of maps and labels over the image")
        self.views = {
            view: widgets.ToggleButton(
                value=view in FIRST_VIEWS, description=view, tooltip=tooltip, layout={"width": "auto"}
            )
            for view, tooltip in VIEWS.items()
        }
        self.refine_par = button("Refine (PAR)", "magic", "pixel-adaptive refinement, as in training; up to a second")
        self.refine_crf = button("Refine (CRF)", "magic", "dense CRF; some seconds")
        self.other_crops = button("Other crops", "random", "draw other local crops")
        self.save_button = button("Save PNG", "download", "write the picture into the folder of the run")
        self.progress = widgets.HTML()
        # no tooltip for it: ipywidgets' JavaScript fails where a widget has a tooltip but no description
        fitting = {"max_width": "100%", "object_fit": "contain", "align_self": "flex-start"}  # shrunk, never stretched
        self.picture = widgets.Image(format="png", layout=fitting)
        self.message = widgets.HTML(layout={"min_height": "28px"})  # the picture stays where it is when a line appears
        self.text = widgets.HTML()

    def _arranged(self) -> list[widgets.Widget]:
        wrapped = {"layout": {"flex_flow": "row wrap"}}
        scales = widgets.HBox([widgets.Label("scales"), self.scale_boxes, self.flip])
        actions = [self.refine_par, self.refine_crf, self.other_crops, self.save_button, self.progress]
        return [
            widgets.HBox([self.run_picker, self.image_picker, self.image_slider, self.upload], **wrapped),
            widgets.HBox([self.class_picker, self.source, scales], **wrapped),
            widgets.HBox([self.low, self.high, self.background, self.opacity], **wrapped),
            widgets.HBox(list(self.views.values()), **wrapped),
            widgets.HBox(actions, **wrapped),
            self.message,
            self.picture,
            self.text,
            KeepsKeys(),
        ]

    def _observe(self) -> None:
        traitlets.link((self.image_picker, "index"), (self.image_slider, "value"), transform=(lambda i: i or 0, int))
        self.run_picker.observe(lambda _: self._open_run(), "value")
        self.image_picker.observe(lambda _: self._show_image(), "value")
        self.upload.observe(lambda _: self._take_upload(), "value")
        for threshold in (self.low, self.high):
            threshold.observe(self._order_thresholds, "value")
        quick = [self.class_picker, self.source, self.flip, self.background, self.opacity, *self.views.values()]
        for control in quick:
            control.observe(lambda _: self._update(), "value")
        self.refine_par.on_click(lambda _: self._refine_clicked("par"))
        self.refine_crf.on_click(lambda _: self._refine_clicked("crf"))
        self.other_crops.on_click(lambda _: self._draw_other_crops())
        self.save_button.on_click(lambda _: self._save_clicked())

    # --- reactions ----------------------------------------------------------------------------------------------

    def _open_run(self) -> None:
        """Load the chosen run once, offer its images, classes and scales, and show the image."""
        if self._held:
            return
        name = self.run_picker.value
        with self._working(f"opening {name}"):
            if name not in self._opened:
                self._opened[name] = self._load(self._runs[name])
            self._offer_images()
            self._offer_scales()
        self._show_image()

    def _load(self, run: Run) -> _Opened:
        model, cfg = load_run_model(run, resolve_device(run.config().device)) if isinstance(run, RunDir) else run
        samples, problem = None, ""
        try:
            samples = eval_samples(cfg, model.mean, model.std, self._split)
        except (ValueError, OSError) as error:  # no data on this machine: uploads still work
            problem = f"no images to choose from, but you can upload one. {error}"
        return _Opened(CamSession(model, cfg), class_names(cfg), samples, problem)

    def _offer_images(self) -> None:
        samples = self._opened[self.run_picker.value].samples
        count = 0 if samples is None else min(self._num_images, len(samples))
        names = [samples.reader.names[i] for i in range(count)] + list(self._uploads)
        chosen = self.image_picker.value
        with self._holding():
            self.image_slider.max = max(0, len(names) - 1)
            self.image_picker.options = names
            if names:
                self.image_picker.value = chosen if chosen in names else names[0]

    def _offer_scales(self) -> None:
        scales = self.session.scales
        if [box.description for box in self.scale_boxes.children] == [f"{scale:g}" for scale in scales]:
            return
        boxes = [
            widgets.Checkbox(
                value=True, indent=False, description=f"{scale:g}", tooltip=f"the image at {scale:g} times its size",
                layout={"width": "65px"},
            )
            for scale in scales
        ]  # fmt: skip
        for box in boxes:
            box.observe(self._keep_a_scale, "value")
        self.scale_boxes.children = boxes

    def _offer_classes(self) -> None:
        """Present classes first."""
        present, chosen = self.session.image.present, self.class_picker.value
        rest = [index for index in range(len(self._names)) if index not in present]
        options = [("strongest present class", STRONGEST)]
        options += [(f"{self._names[index]} (present)", index) for index in present]
        options += [(self._names[index], index) for index in rest]
        with self._holding():
            self.class_picker.options = options
            self.class_picker.value = chosen if chosen in dict(options).values() else STRONGEST

    def _show_image(self) -> None:
        """Encode the chosen image, unless the run's session has it already. If that fails the picture stays."""
        if self._held:
            return
        run, name = self.run_picker.value, self.image_picker.value
        if run not in self._opened or name is None:
            self._restore()
            if run in self._opened:
                self._say(self._opened[run].problem, problem=True)
            return
        done = False
        with self._working(f"encoding {name}"):
            if self._encoded.get(run) != name:
                session, position = self.session, self.image_picker.index
                if name in self._uploads:
                    content = self._uploads[name].content
                    session.set_image(decode_image(content, longest_side=session.longest_side), name=name)
                else:
                    session.set_sample(self._opened[run].samples[position])
                self._encoded[run] = name
            done = True
        if not done:
            self._restore()
            return
        if (run, name) != self._shown:
            self._refinement = self._refined = None
        self._shown = run, name
        self._offer_classes()
        self._update()

    def _restore(self) -> None:
        """Set the pickers back to what the picture shows."""
        if self._shown is None:
            return
        with self._holding():
            self.run_picker.value = self._shown[0]
            self._offer_images()
            self._offer_scales()
            self.image_picker.value = self._shown[1]

    def _take_upload(self) -> None:
        if not self.upload.value:
            return
        file = self.upload.value[0]
        with self._holding():
            self.upload.value = ()
        with self._working("reading the upload"):
            content = bytes(file["content"])
            size = decode_image(content, longest_side=None).shape[:2]  # a damaged file must not get into the list
            name = f"upload {len(self._uploads) + 1}: {file['name']}"
            self._uploads[name] = _Upload(content, size)
            with self._holding():
                self._offer_images()
                self.image_picker.value = name
            self._show_image()

    def _order_thresholds(self, change: Any) -> None:
        """Keep low below high: the one that was not moved gives way."""
        if self._held:
            return
        note = ""
        if self.low.value >= self.high.value:
            with self._holding():
                if change["owner"] is self.low:
                    self.low.value = min(self.low.value, 1 - _STEP)
                    self.high.value = round(self.low.value + _STEP, 2)
                    note = f"high moved to {self.high.value:.2f}: it must lie above low"
                else:
                    self.high.value = max(self.high.value, _STEP)
                    self.low.value = round(self.high.value - _STEP, 2)
                    note = f"low moved to {self.low.value:.2f}: it must lie below high"
        self._update(note)

    def _keep_a_scale(self, change: Any) -> None:
        if self._held:
            return
        note = ""
        if not self._scales:
            with self._holding():
                change["owner"].value = True
            note = "one scale at least is needed"
        self._update(note)

    def _refine_clicked(self, method: str) -> None:
        with self._working(f"refining ({method.upper()})"):
            self._refine(
                low=self.low.value, high=self.high.value, source=self.source.value, method=method,
                scales=list(self._scales), flip=self.flip.value,
            )  # fmt: skip
            with self._holding():
                self.views["refined label"].value = True
            self._update()

    def _refine(self, **arguments: Any) -> None:
        self._refined = self.session.refined_label(**arguments)
        self._refinement = arguments

    def _draw_other_crops(self) -> None:
        self._crop_seed += 1
        with self._holding():
            self.views["regions and crops"].value = True
        self._update()

    def _save_clicked(self) -> None:
        with self._working("saving"):
            self._say(f"saved as {self.save()}")

    # --- the picture --------------------------------------------------------------------------------------------

    @property
    def _names(self) -> tuple[str, ...]:
        return self._opened[self.run_picker.value].class_names

    @property
    def _scales(self) -> tuple[float, ...]:
        boxes = zip(self.session.scales, self.scale_boxes.children, strict=True)
        return tuple(scale for scale, box in boxes if box.value)

    def _update(self, note: str = "") -> None:
        """Read the controls, ask the session, draw. A view that fails leaves its panel empty and says why."""
        if self._held or self._shown is None:
            return
        chosen = [view for view, button in self.views.items() if button.value] or ["image"]
        looks, problems = [], []
        for view in chosen:
            try:
                looks.append(self._look(view))
            except Exception as error:  # whatever it is: raised in a callback it would vanish
                looks.append(_Look(Panel(view, note="see the message above")))
                problems.append(f"{view}: {error}")
        panels = [look.panel for look in looks]
        self._pixels = panel_row(self.session.image.raw, panels, opacity=self.opacity.value, side=_SIDE)
        self.picture.value = png_bytes(self._pixels)
        self.text.value = self._in_words(looks)
        self._say("; ".join(filter(None, [*problems, note])), problem=bool(problems))

    def _look(self, view: str) -> "_Look":
        image = self.session.image
        if view not in VIEWS:
            raise ValueError(f"unknown view {view!r}; there are: {', '.join(VIEWS)}")
        if view == "image":
            return _Look(Panel(image.name, image.raw, note=self._sizes))
        if view == "regions and crops":
            return _Look(self._crops_panel())
        if view in SOURCE_NAMES or view in ATTRIBUTIONS:
            return _Look(self._map_panel(view))
        if view == "refined label" and self._refined is None:
            return _Look(Panel(view, note="press a Refine button"))
        if view == "truth":
            known = image.truth is not None
            return _Look(self._label_panel(view, image.truth) if known else Panel(view, note="no mask is known"))
        title, label = self._label(view)
        if image.truth is None:
            return _Look(self._label_panel(title, label))
        iou = self.session.iou(label)
        note = f"mIoU {100 * iou.miou:.1f} %"
        note += f", {100 * iou.left_open:.0f} % left open" if iou.left_open > 0 else ""
        return _Look(self._label_panel(title, label, note), iou)

    @property
    def _sizes(self) -> str:
        """Width x height in pixels of the image as it came and, where that differs, as it is shown and read."""
        image = self.session.image
        upload = self._uploads.get(image.name)
        sizes = (image.size if upload is None else upload.size), image.size, tuple(image.pixels.shape[-2:])
        came, shown, read = (f"{width} x {height}" for height, width in sizes)
        if shown == read:
            return came if came == shown else f"{came}, shown and read at {read}"
        return f"{came}, read at {read}" if came == shown else f"{came}, shown at {shown}, read at {read}"

    @property
    def _which(self) -> dict[str, Any]:
        return {"scales": self._scales, "flip": self.flip.value}

    def _map_panel(self, view: str) -> Panel:
        session, chosen = self.session, None if self.class_picker.value == STRONGEST else self.class_picker.value
        if view in ATTRIBUTIONS:
            chosen = session.image.strongest_class if chosen is None else chosen
            with self._busy(f"computing {view}"):
                score = session.attribution(view, chosen)
        else:
            score = session.score(SOURCE_NAMES[view], chosen, **self._which)
        name = ": strongest class" if chosen is None else f": {self._names[chosen]}"
        name = "" if view == "attention rollout" else name  # it knows no class
        return Panel(view + name, _numpy(score), note=_on_and_off(score, session.image.truth, chosen))

    def _label(self, view: str) -> tuple[str, Tensor]:
        """Title and label map of a view that is made of a CAM or of the decoder."""
        session, low, high, source = self.session, self.low.value, self.high.value, self.source.value
        threshold = self.background.value
        match view:
            case "CAM label":
                return f"{self.source.label} above {threshold:.2f}", session.label(source, threshold, **self._which)
            case "pseudo label":
                return f"pseudo label, {low:.2f} to {high:.2f}", session.pseudo_label(low, high, source, **self._which)
            case "refined label":
                made = self._refinement
                return f"{made['method'].upper()} of {made['low']:.2f} to {made['high']:.2f}", self._refined
        return view, session.segmentation()

    def _label_panel(self, title: str, label: Tensor, note: str = "") -> Panel:
        return Panel(title, _numpy(label), note=note, legend=label_legend(PALETTE, ("background", *self._names)))

    def _crops_panel(self) -> Panel:
        low, high = self.low.value, self.high.value
        crops = self.session.local_crops(low, high, self._crop_seed, **self._which)
        corners = zip(crops.top[0].tolist(), crops.left[0].tolist(), crops.positive[0].tolist(), strict=True)
        boxes = [CropBox(top, left, crops.size, positive > 0) for top, left, positive in corners]
        count = sum(box.positive for box in boxes)
        return Panel(
            "regions and crops",
            _numpy(self.session.region(low, high, **self._which)),
            note=f"{count} positive, {len(boxes) - count} negative, draw {self._crop_seed}",
            legend=REGIONS,
            crops=boxes,
        )

    def _in_words(self, looks: Sequence["_Look"]) -> str:
        """The picture as HTML text: what it shows, panel by panel, and a table of IoU in per cent."""
        image, names = self.session.image, ("background", *self._names)
        labels = ", ".join(self._names[index] for index in image.present) or "none"
        how = "true" if image.label_source == "true" else "predicted by the model, for nobody gave them"
        panels = "; ".join(look.panel.title + (f" ({look.panel.note})" if look.panel.note else "") for look in looks)
        words = f"{image.name}, {self._sizes} pixels, image labels ({how}): {labels}. Panels: {panels}."
        scored = [look for look in looks if look.iou is not None]
        if not scored:
            return f"<p>{html.escape(words)}</p>"
        used = [i for i in range(len(names)) if any(not look.iou.iou[i].isnan() for look in scored)]
        head = ["IoU, %", "mean", *(names[i] for i in used), "left open, %"]
        rows = [
            [look.panel.title, *_per_cent([look.iou.miou, *look.iou.iou[used].tolist(), look.iou.left_open])]
            for look in scored
        ]
        lines = [_html_row(head, "th"), *(_html_row(row, "td") for row in rows)]
        return f"<p>{html.escape(words)}</p><table style='border-spacing: 1em 0'>{''.join(lines)}</table>"

    # --- inside -------------------------------------------------------------------------------------------------

    def _say(self, text: str, *, problem: bool = False) -> None:
        colour = "var(--jp-error-color1, #B00020)" if problem else "inherit"
        self.message.value = f'<div role="status" style="color: {colour}">{html.escape(text)}</div>' if text else ""

    @contextmanager
    def _busy(self, what: str) -> Iterator[None]:
        self.progress.value = f'<span role="status">⏳ {html.escape(what)} …</span>'
        try:
            yield
        finally:
            self.progress.value = ""

    @contextmanager
    def _working(self, what: str) -> Iterator[None]:
        """Says what is going on, and what went wrong: an exception in a callback would vanish."""
        with self._busy(what):
            try:
                yield
            except Exception as error:
                self._say(f"{what} failed: {error}", problem=True)

    @contextmanager
    def _holding(self) -> Iterator[None]:
        """Controls may change without anything being drawn."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before


@dataclass(frozen=True)
class _Look:
    """A view as a panel, with its IoU where it is a label and the mask is known."""

    panel: Panel
    iou: ImageIou | None = None


def _named(runs: Run | Sequence[Run]) -> dict[str, Run]:
    """Runs by name; equal names are numbered."""
    if isinstance(runs, RunDir) or (isinstance(runs, tuple) and isinstance(runs[0], ToCo)):
        runs = [runs]
    if not runs:
        raise ValueError("CamExplorer needs at least one run: a RunDir, or a pair (model, config)")
    named = {}
    for run in runs:
        name = first = run.name if isinstance(run, RunDir) else run[1].run_name()
        count = 1
        while name in named:
            count += 1
            name = f"{first} ({count})"
        named[name] = run
    return named


def _config(run: Run) -> Config:
    return run.config() if isinstance(run, RunDir) else run[1]


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


def _on_and_off(score: Tensor, truth: Tensor | None, class_index: int | None) -> str:
    """Mean score on the object (a class, or any) and on the ground, where the mask says which is which.

    A good map is brighter on the object; one whose two numbers are the other way round is inverted.
    """
    if truth is not None:
        inside = (truth == class_index + 1) if class_index is not None else (truth > 0) & (truth != IGNORE_INDEX)
        on, off = ((score * where).sum() / where.sum() for where in (inside, truth == 0))  # NaN where there is none
        if not (on.isnan() or off.isnan()):
            return f"mean: object {on:.2f}, ground {off:.2f}"
    return f"mean {score.mean():.2f}"


def _per_cent(values: Sequence[float]) -> list[str]:
    return ["-" if math.isnan(value) else f"{100 * value:.1f}" for value in values]


def _html_row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _one_of(what: str, value: Any, allowed: Sequence[Any] | Mapping[Any, Any]) -> Any:
    if value not in allowed:
        raise ValueError(f"there is no {what} {value!r}; there are: {', '.join(map(str, allowed))}")
    return value
