"""Masks of a clip: the CAMs of each frame averaged with those of its neighbours along the optical flow.

    OUT/masks/<frame>.png        palette PNG of the frame's size: 0 background, 1..C classes
    OUT/overlays/<frame>.png     the mask over the frame
    OUT/animation.gif (.mp4)     the overlays, moving
    OUT/strip.png                some frames, and below them their overlays
    OUT/classes.txt              names of the numbers 1..C
    OUT/protocol.json            everything that defines these files

The encoder sees each frame once for its CAMs. Where nobody tells the classes, the mean of the frames' logits decides
which the clip shows, which takes one more pass of each frame: it must be known before the first CAM.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from toco_lab.backbones.pixels import denormalise, normalise
from toco_lab.data.classes import PALETTE, DataError, save_mask
from toco_lab.data.images import read_rgb, scaled_down
from toco_lab.evaluation.clip_scores import flow_record
from toco_lab.evaluation.label_folder import check_protocol, write_protocol
from toco_lab.evaluation.over_time import fuse_frame
from toco_lab.evaluation.prediction import BATCH, NativeCams, native_cams
from toco_lab.figures.moving import gif_bytes, label_overlay, png_bytes, strip
from toco_lab.files import atomic_write, check_writable
from toco_lab.method.cam import at_evaluation_size
from toco_lab.method.flow import WINDOW, EstimatedMotion
from toco_lab.method.present import PresentClasses
from toco_lab.methods import has_cams
from toco_lab.prediction.frames import Frames, mp4_bytes, need_pyav, open_frames
from toco_lab.prediction.predictor import Predictor, label_at
from toco_lab.prediction.recipe import Recipe
from toco_lab.progress import progress_bar
from toco_lab.runs.locks import only_worker
from toco_lab.vocabulary import SEG
from toco_lab.words import counted

Animation = Literal["gif", "mp4", "none"]
STRIP_FRAMES = 8  # of the strip, spread over the clip
SHOWN_SIDE = 320  # pixels of the longest side of a picture in animation and strip


@dataclass(frozen=True)
class VideoPrediction:
    """What was made of a clip.

    Attributes:
        out: The folder.
        names: Of the frames, in their order.
        present: Names of the classes that the clip shows.
        scores: Class name -> score of the whole clip in [0, 1]; empty where the classes were told.
    """

    out: Path
    names: tuple[str, ...]
    present: tuple[str, ...]
    scores: dict[str, float]

    def __str__(self) -> str:
        """In a few lines."""
        shown = ", ".join(
            f"{name} {100 * self.scores[name]:.0f} %" if name in self.scores else name for name in self.present
        )
        lines = [f"{self.out}: {counted(len(self.names), 'frame')} predicted; {shown or 'no class'}"]
        if not self.present:
            lines.append("no class is present in the clip: a lower --label-threshold finds more, --classes tells them")
        return "\n".join(lines)


def predict_video(
    model: Predictor,
    source: Path | str,
    out: Path | str,
    *,
    window: int = WINDOW,
    animation: Animation = "gif",
    progress: bool = True,
    **options: Any,
) -> VideoPrediction:
    """Masks of all frames of a clip, into a folder; see the top of this file for what lies in it.

    Args:
        model: From `toco_lab.load`.
        source: A folder of images of one size, or a video file (with the extra `video`).
        out: The folder; made if needed. Files of an earlier call with the same protocol are replaced.
        window: Neighbours on each side that a frame's CAMs are averaged with; 0 predicts each frame alone.
        animation: `mp4` needs the extra `video`.
        progress: Show a progress bar.
        **options: As in `Predictor.predict`: `mask` (a CAM's; `auto` takes cam_refined), `crf`, `classes`,
            `label_threshold`, `background_threshold`, `scales`, `flip`, `longest_side`.

    Raises:
        FileNotFoundError: If there is nothing at `source`.
        DataError: If there are no frames, they differ in size, or one cannot be read or is smaller than a patch.
        ValueError: For a wrong option, a video without the package that reads it, or if the folder holds something
            else.
        OSError: Before the work, if nothing can be written there.
    """
    recipe, out = _recipe(model, options), Path(out)
    if window < 0:
        raise ValueError(f"window must be at least 0 frames, got {window}")
    if animation not in get_args(Animation):
        raise ValueError(f"animation must be one of {', '.join(get_args(Animation))}, got {animation!r}")
    if animation == "mp4":
        need_pyav("an mp4 is written")
    frames = open_frames(source)
    fusion = {"window": window, "flow": flow_record() if window else None, "label_of": "the mean logit of all frames"}
    record = json.loads(json.dumps(model.protocol(recipe) | {"what": "a clip", "over_time": fusion}))
    check_protocol(out, record, "predictions of a clip")
    check_writable(out / "protocol.json")
    with only_worker(out, "writes predictions there"):
        label, logits = _label_of_clip(model, recipe, frames, progress=progress)
        write_protocol(out, record)
        with atomic_write(out / "classes.txt", "w") as file:
            file.write("".join(f"{name}\n" for name in model.class_names))
        names = []
        with progress_bar(range(frames.count or 0), "video", frames.count, unit="frame", shown=progress) as bar:
            for name, image, mask in _Window(model, recipe, label, window).masks(frames):
                save_mask(out / "masks" / f"{name}.png", mask)
                with atomic_write(out / "overlays" / f"{name}.png") as written:
                    written.write(png_bytes(label_overlay(image, mask, PALETTE)))
                names.append(name)
                bar.update(1)
        _show(out, names, frames, animation)
    present = tuple(model.class_names[number] for number in label[0].nonzero().flatten().tolist())
    scores = {} if logits is None else logits[0].double().sigmoid().tolist()
    return VideoPrediction(out, tuple(names), present, dict(zip(model.class_names, scores, strict=bool(scores))))


def _recipe(model: Predictor, options: dict[str, Any]) -> Recipe:
    """The recipe, of a CAM's mask; ValueError for what cannot be fused."""
    if options.get("mask", "auto") == "auto":
        options = options | {"mask": "cam_refined"}
    if not has_cams(model.cfg):
        raise ValueError(f"method {model.cfg.method!r} has no CAM to fuse over time: take `predict`")
    if options["mask"] == SEG:
        raise ValueError("mask 'seg' is the decoder's, and CAMs are fused over time: take cam, cam_refined or cam_aux")
    if options.get("tiles"):
        raise ValueError("tiles have no effect on a clip, whose frames are scaled down: leave them out")
    return model.recipe(**options)


def _label_of_clip(model: Predictor, recipe: Recipe, frames: Frames, *, progress: bool) -> tuple[Tensor, Tensor | None]:
    """The classes of the clip, (1, C) in {0, 1}, and the mean logits (1, C); None where the classes were told."""
    if recipe.told is not None:
        return recipe.image_label(torch.zeros(1, len(model.class_names), device=model.device)), None
    total, count = torch.zeros(1, len(model.class_names), device=model.device), 0
    with progress_bar(range(frames.count or 0), "classes", frames.count, unit="frame", shown=progress) as bar:
        for group in _groups(iter(_seen(model, recipe, frames)), BATCH):
            image = at_evaluation_size(torch.stack([pixels for _, _, pixels in group]), recipe.cfg.eval_cam_size)
            with torch.no_grad():
                total += model.model(image, segment=False).logits.sum(0, keepdim=True)
            count += len(group)
            bar.update(len(group))
    mean = total / count
    return recipe.image_label(mean), mean


Seen = tuple[str, np.ndarray, Tensor]  # name, frame (H, W, 3) uint8, what the model sees of it, (3, h, w)


def _seen(model: Predictor, recipe: Recipe, frames: Frames) -> Iterator[Seen]:
    for name, raw in frames:
        if min(raw.shape[:2]) < model.model.patch_size:
            raise DataError(
                f"{name} of {frames.path} has {raw.shape[1]} x {raw.shape[0]} pixels: a side is shorter than a patch "
                f"of {model.model.patch_size}, and the model would see nothing. Enlarge the frames"
            )
        small = torch.from_numpy(scaled_down(raw, recipe.longest_side)).permute(2, 0, 1).contiguous()
        yield name, raw, normalise(small, model.model.mean, model.model.std).to(model.device)


def _groups(seen: Iterator[Seen], most: int) -> Iterator[list[Seen]]:
    group: list[Seen] = []
    for one in seen:
        group.append(one)
        if len(group) == most:
            yield group
            group = []
    if group:
        yield group


class _Window:
    """The frames around the one that is predicted; those that no later frame needs are let go."""

    def __init__(self, model: Predictor, recipe: Recipe, label: Tensor, window: int) -> None:
        self.model, self.recipe, self.label, self.window = model, recipe, label, window
        self._frames: dict[int, Seen] = {}
        self._pixels: dict[int, Tensor] = {}  # (3, h, w) grey levels, for the flow
        self._maps: dict[int, Tensor] = {}  # (2 S, h, w): final CAMs, then auxiliary ones
        self._logits: dict[int, Tensor] = {}
        self._motion = EstimatedMotion(self._pixels, window=window)
        self._present = PresentClasses.of(label)

    @torch.no_grad()
    def masks(self, frames: Frames) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Name, image (H, W, 3) and mask (H, W) uint8 of each frame."""
        read = due = 0
        for group in _groups(iter(_seen(self.model, self.recipe, frames)), BATCH):
            self._take(read, group)
            read += len(group)
            while due + self.window < read:
                yield self._made(due)
                due += 1
        while due < read:
            yield self._made(due)
            due += 1

    def _take(self, first: int, group: list[Seen]) -> None:
        """The CAMs of further frames, one pass."""
        net, image = self.model.model, torch.stack([pixels for _, _, pixels in group])
        label = self.label.expand(len(group), -1)
        cams = native_cams(net, self.recipe.cfg, image, label, flip=self.recipe.flip)
        maps, pixels = torch.cat([cams.cam, cams.cam_aux], dim=1), denormalise(image, net.mean, net.std)
        for place, one in enumerate(group):
            self._frames[first + place], self._maps[first + place] = one, maps[place]
            self._pixels[first + place], self._logits[first + place] = pixels[place], cams.logits[place]

    def _made(self, frame: int) -> tuple[str, np.ndarray, np.ndarray]:
        """The frame's mask, of the fused maps; what lies further back than later frames need is let go."""
        name, raw, image = self._frames[frame]
        cam, cam_aux = fuse_frame(frame, self._maps, self._motion, window=self.window)[None].chunk(2, dim=1)
        cams = NativeCams(cam, cam_aux, self._present, self._logits[frame][None])
        mask = label_at(self.recipe.masks(self.model.model, image[None], cams)[0], raw.shape[:2])
        for kept in (self._frames, self._pixels, self._maps, self._logits):
            kept.pop(frame - self.window, None)
        return name, raw, mask


def _show(out: Path, names: list[str], frames: Frames, animation: str) -> None:
    """Animation and strip, of the overlays that lie in the folder."""
    chosen = np.unique(np.linspace(0, len(names) - 1, STRIP_FRAMES).round().astype(int)).tolist()
    pictures = {number: scaled_down(raw, SHOWN_SIDE // 2) for number, (_, raw) in enumerate(frames) if number in chosen}
    overlays = [scaled_down(read_rgb(out / "overlays" / f"{names[number]}.png"), SHOWN_SIDE // 2) for number in chosen]
    with atomic_write(out / "strip.png") as file:
        file.write(png_bytes(strip({"frames": list(pictures.values()), "masks": overlays})))
    if animation == "none":
        return
    moving = (scaled_down(read_rgb(out / "overlays" / f"{name}.png"), SHOWN_SIDE) for name in names)
    data = mp4_bytes(moving, rate=frames.rate) if animation == "mp4" else gif_bytes(moving, rate=frames.rate)
    with atomic_write(out / f"animation.{animation}") as file:
        file.write(data)
