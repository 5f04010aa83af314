"""The controls of the CAM explorer: how they are made and arranged, what they offer, and the settings they stand for.

Nothing here knows a model, and nothing reacts: `cam_explorer` does both.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as widgets
import traitlets

from toco_lab.config import Config
from toco_lab.explorers.cam_panels import READ_BY, REFINEMENTS, SOURCE_NAMES, VIEWS, CamChoice
from toco_lab.explorers.controls import ControlBox, button, wide, wrapped_row
from toco_lab.explorers.panel_picture import PanelPicture
from toco_lab.vocabulary import CAM, CAM_AUX, TITLES

FIRST_VIEWS = (TITLES[CAM], TITLES[CAM_AUX], "pseudo label", "truth")
USUAL = 0  # value of the block picker: each attribution is read where it is usual
STRONGEST = -1  # value of the class picker: the strongest present class, at each pixel
NO_RUN = ""  # value of the picker of a second run: none
_STEP = 0.01  # of the sliders
_PLAIN = ("source", "flip", "low", "high", "background", "opacity")  # controls whose value is their setting


class CamControls(ControlBox):
    """The controls of a `CamExplorer`, which lists them."""

    def __init__(self, runs: Sequence[str], cfg: Config) -> None:
        """Makes and arranges the controls.

        Args:
            runs: Names of the runs on offer.
            cfg: Gives the sliders their first values.
        """
        super().__init__()
        self._crop_seed = 0
        self._scales: tuple[float, ...] = ()  # on offer, one for each of `scale_boxes`
        self._make_image_controls(runs)
        self._make_cam_controls()
        self._make_sliders(cfg)
        self._make_views()
        self._make_actions()
        self._make_outputs()
        self._tooltips = {name: getattr(self, name).tooltip for name in (*READ_BY, "opacity")}
        scales = widgets.HBox([self.scale_boxes, self.flip])
        self._arrange(
            wrapped_row(self.run_picker, self.beside),
            wrapped_row(self.image_picker, self.image_slider, self.upload),
            wrapped_row(self.class_picker, self.source, self.block, scales),
            wrapped_row(self.low, self.high, self.background, self.opacity),
            self.idle,
            wrapped_row(*self.views.values()),
            wrapped_row(
                self.refinement, self.refine, self.other_crops, self.measure_button, self.save_button, self.progress
            ),
            self.message,
            self.picture,
            self.text,
        )

    # --- made ---------------------------------------------------------------------------------------------------

    def _make_image_controls(self, runs: Sequence[str]) -> None:
        self.run_picker = widgets.Dropdown(options=runs, description="run", tooltip="trained model", **wide(260))
        self.beside = widgets.Dropdown(description="beside", tooltip="a second run, for the same image", **wide(260))
        self._offer_runs(runs)
        self.image_picker = widgets.Dropdown(description="image", tooltip="image by name", **wide(260))
        self.image_slider = widgets.IntSlider(
            min=0, max=0, description="number", tooltip="image by number", continuous_update=False, **wide(260)
        )
        numbers = (lambda index: index or 0, int)  # no image is chosen: 0
        traitlets.link((self.image_picker, "index"), (self.image_slider, "value"), transform=numbers)
        self.upload = widgets.FileUpload(
            accept="image/*", multiple=False, description="upload",
            tooltip="an image of your own; it stays in the kernel",
        )  # fmt: skip

    def _make_cam_controls(self) -> None:
        self.class_picker = widgets.Dropdown(
            options=[("strongest present class", STRONGEST)], description="class", tooltip="whose CAM", **wide(260)
        )
        self.source = widgets.Dropdown(
            options=SOURCE_NAMES, description="labels from", tooltip="which CAM the labels are made from", **wide(260)
        )
        self.block = widgets.Dropdown(
            options=[("as usual", USUAL)], description="block",
            tooltip="where attributions (rollout, Grad-CAM ...) are read", **wide(260),
        )  # fmt: skip
        self.scale_boxes = widgets.HBox()
        self.flip = _checkbox("flip", "also the mirror image", 70)

    def _make_sliders(self, cfg: Config) -> None:
        self.low = _slider("low", cfg.low_threshold, "CAM score at or below this is background")
        self.high = _slider("high", cfg.high_threshold, "CAM score above this is an object")
        self.background = _slider("background", cfg.background_threshold, "the one threshold of the CAM label")
        self.opacity = _slider("opacity", 0.6, "of maps and labels over the image")

    def _make_views(self) -> None:
        fitting = {"width": "auto"}
        self.views = {
            view: widgets.ToggleButton(value=view in FIRST_VIEWS, description=view, tooltip=tooltip, layout=fitting)
            for view, tooltip in VIEWS.items()
        }
        self.idle = widgets.HTML()  # which controls move nothing that is shown, and why

    def _make_actions(self) -> None:
        self.refinement = widgets.Dropdown(
            options=[(REFINEMENTS["par"], "par")], description="refine by",
            tooltip="what makes the refined label of the pseudo label", **wide(260),
        )  # fmt: skip
        self.refine = button("Refine", "magic", "look at the image once more; up to some seconds")
        self.other_crops = button("Other crops", "random", "draw other local crops")
        self.measure_button = button("Faithfulness", "check", "insertion and deletion of the maps shown; some seconds")
        self.save_button = button("Save PNG", "download", "write the picture into the folder of the run")
        self.progress = widgets.HTML()

    def _make_outputs(self) -> None:
        self.picture = PanelPicture()
        self.text = widgets.HTML()

    # --- what is on offer ---------------------------------------------------------------------------------------

    def _offer_runs(self, names: Sequence[str]) -> None:
        """Offer all but the chosen run to stand beside it; the one that did stays if it can."""
        others = [name for name in names if name != self.run_picker.value]
        second = self.beside.value
        with self._quietly():
            self.beside.options = [("no other run", NO_RUN), *((name, name) for name in others)]
            self.beside.value = second if second in others else NO_RUN
            self.beside.layout.display = "" if others else "none"

    def _offer_images(self, names: Sequence[str]) -> None:
        """The chosen image is kept if it is still there."""
        chosen = self.image_picker.value
        with self._quietly():
            self.image_slider.max = max(0, len(names) - 1)
            self.image_picker.options = names
            if names:
                self.image_picker.value = chosen if chosen in names else names[0]

    def _offer_scales(self, scales: tuple[float, ...], on_change: Callable[[Any], None]) -> None:
        if self._scales == scales:
            return
        boxes = [_checkbox(f"scale {scale:g}", f"the image at {scale:g} times its size", 90) for scale in scales]
        for box in boxes:
            box.observe(on_change, "value")
        self._scales, self.scale_boxes.children = scales, boxes

    def _offer_classes(self, names: Sequence[str], present: Mapping[int, str]) -> None:
        """Present classes come first, each with a word about how that is known."""
        chosen = self.class_picker.value
        absent = [index for index in range(len(names)) if index not in present]
        options = [("strongest present class", STRONGEST)]
        options += [(f"{names[index]} ({how})", index) for index, how in present.items()]
        options += [(names[index], index) for index in absent]
        with self._quietly():
            self.class_picker.options = options
            self.class_picker.value = chosen if chosen in dict(options).values() else STRONGEST

    def _offer_refinements(self, words: Sequence[str]) -> None:
        """The chosen one is kept if it is still there."""
        chosen = self.refinement.value
        with self._quietly():
            self.refinement.options = [(REFINEMENTS[word], word) for word in words]
            self.refinement.value = chosen if chosen in words else words[0]

    def _offer_blocks(self, count: int) -> None:
        """The chosen block is kept if it is still there."""
        chosen = self.block.value
        with self._quietly():
            self.block.options = [("as usual", USUAL), *((str(number), number) for number in range(1, count + 1))]
            self.block.value = chosen if chosen <= count else USUAL

    def _switch_off_idle(self, *, maps: bool) -> None:
        """Disable the controls that move nothing in the views that are shown, and say what they would move.

        `maps`: whether there is a map or a label over the image, so that its opacity is seen.
        """
        shown = [view for view, toggle in self.views.items() if toggle.value]
        idle = []
        for name, tooltip in self._tooltips.items():
            control, views = getattr(self, name), READ_BY.get(name, frozenset())
            off = not maps if name == "opacity" else not views.intersection(shown)
            moved = "maps and labels" if name == "opacity" else ", ".join(view for view in VIEWS if view in views)
            if name == "scale_boxes":
                for box in self.scale_boxes.children:
                    box.disabled = off
            else:
                control.disabled = off
                control.tooltip = f"moves nothing that is shown, only: {moved}" if off else tooltip
            if off:
                idle.append(f"{'scales' if name == 'scale_boxes' else control.description} (moves {moved})")
        words = f"Without effect on what is shown: {'; '.join(idle)}." if idle else ""
        self.idle.value = f'<span style="opacity: 0.75">{html.escape(words)}</span>' if words else ""

    # --- values that exclude each other -------------------------------------------------------------------------

    def _keep_order(self, moved: widgets.FloatSlider) -> str:
        """Keep low below high: the threshold that was not moved gives way. Returns what was done, in words."""
        if self.low.value < self.high.value:
            return ""
        with self._quietly():
            if moved is self.low:
                self.low.value = min(self.low.value, 1 - _STEP)
                self.high.value = round(self.low.value + _STEP, 2)
                return f"high moved to {self.high.value:.2f}: it must lie above low"
            self.high.value = max(self.high.value, _STEP)
            self.low.value = round(self.high.value - _STEP, 2)
            return f"low moved to {self.low.value:.2f}: it must lie below high"

    def _keep_a_scale(self, moved: widgets.Checkbox) -> str:
        """Tick the box again if it was the last one. Returns what was done, in words."""
        if self._chosen_scales:
            return ""
        with self._quietly():
            moved.value = True
        return "one scale at least is needed"

    # --- settings -----------------------------------------------------------------------------------------------

    @property
    def _chosen_scales(self) -> tuple[float, ...]:
        boxes = zip(self._scales, self.scale_boxes.children, strict=True)
        return tuple(scale for scale, box in boxes if box.value)

    def _choice(self) -> CamChoice:
        return CamChoice(
            class_index=None if self.class_picker.value == STRONGEST else self.class_picker.value,
            source=self.source.value,
            scales=self._chosen_scales,
            flip=self.flip.value,
            low=self.low.value,
            high=self.high.value,
            background=self.background.value,
            crop_seed=self._crop_seed,
            block=self.block.value or None,
        )

    def _read_settings(self, class_names: Sequence[str]) -> dict[str, Any]:
        """The settings the controls stand for, in JSON's types."""
        index = self.class_picker.value
        return {
            "run": self.run_picker.value,
            "beside": self.beside.value or None,
            "image": self.image_picker.value,
            "class": None if index == STRONGEST else class_names[index],
            "scales": list(self._chosen_scales),
            **{name: getattr(self, name).value for name in _PLAIN},
            "crop_seed": self._crop_seed,
            "block": self.block.value or None,
            "views": [view for view, toggle in self.views.items() if toggle.value],
        }

    def _write_settings(self, settings: Mapping[str, Any], class_names: Sequence[str]) -> None:
        """Set the controls to all of `settings` but the runs and the image, without a reaction.

        Raises:
            ValueError: For a value that does not exist; then no control has changed.
        """
        name, low, high = settings["class"], settings["low"], settings["high"]
        if name is not None:
            one_of("class", name, class_names)
        for scale in settings["scales"]:
            one_of("scale", scale, self._scales)
        one_of("source", settings["source"], list(SOURCE_NAMES.values()))
        if settings["block"] is not None:
            one_of("block", settings["block"], [value for _, value in self.block.options if value != USUAL])
        for view in settings["views"]:
            one_of("view", view, self.views)
        if not 0 <= low < high <= 1:
            raise ValueError(f"need 0 <= low < high <= 1, got {low} and {high}")
        with self._quietly():
            self.class_picker.value = STRONGEST if name is None else class_names.index(name)
            for scale, box in zip(self._scales, self.scale_boxes.children, strict=True):
                box.value = scale in settings["scales"]
            for control in _PLAIN:
                getattr(self, control).value = settings[control]
            for view, toggle in self.views.items():
                toggle.value = view in settings["views"]
            self.block.value = settings["block"] or USUAL
        self._crop_seed = settings["crop_seed"]


def one_of(what: str, value: Any, allowed: Sequence[Any] | Mapping[Any, Any]) -> Any:
    """`value`, if it is one of the allowed ones.

    Raises:
        ValueError: Naming all that are allowed.
    """
    if value not in allowed:
        raise ValueError(f"there is no {what} {value!r}; there are: {', '.join(map(str, allowed))}")
    return value


def _slider(name: str, value: float, tooltip: str) -> widgets.FloatSlider:
    # moves may come while the kernel is busy: the browser keeps back all but the last of them
    return widgets.FloatSlider(
        value, min=0, max=1, step=_STEP, description=name, tooltip=tooltip, continuous_update=True, **wide(260)
    )


def _checkbox(name: str, tooltip: str, width: int) -> widgets.Checkbox:
    layout = {"width": f"{width}px"}
    return widgets.Checkbox(value=True, indent=False, description=name, tooltip=tooltip, layout=layout)
