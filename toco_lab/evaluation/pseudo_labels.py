"""Pseudo labels of a trained run as a data set: what a multi-stage method hands over to its fully-supervised stage.

    OUT/<kind>/SegmentationClass/<image>.png            palette PNGs: 0 background, 1..C classes, 255 ignored
    OUT/<kind>/ImageSets/Segmentation/<split>.txt       the images
    OUT/<kind>/labels.csv, classes.txt                  their true image labels, the names of the numbers
    OUT/<kind>/protocol.json                            everything that defines these labels
    OUT/<kind>/JPEGImages -> OUT/JPEGImages             on request: links to the images, or copies
    OUT/<kind>/scores/<image>.npz                       on request, of `seed` and `aux`: see `save_scores`

Every kind lies in a folder of its own that is complete: a trainer written for VOC is pointed at its SegmentationClass,
and with the images beside it it is the `data_root` of the preset `folder`.
"""

import hashlib
import inspect
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from toco_lab.backbones.pixels import denormalise
from toco_lab.backbones.weights import weights_hash
from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.data.classes import DataError, class_names, label_names, save_mask
from toco_lab.data.layouts import LAYOUTS, locate
from toco_lab.data.loader import EvalSample, EvalSamples, eval_samples
from toco_lab.data.prepare import write_labels
from toco_lab.evaluation.evaluate import protocol_record
from toco_lab.evaluation.gallery import NUM_IMAGES
from toco_lab.evaluation.prediction import BATCH, grouped_by_size, native_cams
from toco_lab.evaluation.scores import confusion_matrix, iou_scores
from toco_lab.files import atomic_write
from toco_lab.method.cam import Cams
from toco_lab.method.crf import crf_label, dense_crf
from toco_lab.method.labels import confident_label
from toco_lab.method.model import ToCo
from toco_lab.method.refine import refine_cam
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model
from toco_lab.training.processes import resolve_device
from toco_lab.vocabulary import CAM, CAM_AUX, CAM_REFINED, MIOU

TARGETS = {"seed": CAM, "refined": CAM_REFINED, "crf": "cam_crf", "aux": CAM_AUX}  # of the protocol
DEFAULT_KINDS = ("seed", "refined", "crf")
SCORED = {"seed": "cam", "aux": "cam_aux"}  # kinds that have soft scores, and the field of `Cams` they come from
PATIENCE = 50  # images after which a model whose every label is constant is given up
MASKS, IMAGES, LISTS = "SegmentationClass", "JPEGImages", "ImageSets/Segmentation"


@dataclass(frozen=True)
class Thresholds:
    """Background scores: above `high` a class, at or below `low` background, 255 between; equal, nothing is left open.

    Raises:
        ValueError: If they are out of order or outside [0, 1].
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        """Checks the order."""
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"thresholds need 0 <= low <= high <= 1, got {self.low} and {self.high}")


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """What `write_pseudo_labels` wrote; `str(...)` is meant to be read.

    Attributes:
        out: Folder of the kinds.
        split, num_images, num_masks: The list, its images, and how many of them have a true mask.
        shares: Share of all pixels in [0, 1], a row per class, background and `ignored`, a column per kind.
        miou: By kind, over the images that have a mask, in [0, 1]; empty without masks. Without ignored pixels it is
            what `evaluate` says. With them only decided pixels count, but a class of the truth that is nowhere decided
            or predicted counts as 0.
        constant: By kind, images that show a class and whose label is one value throughout.
        shown: Names and rows of the first images, for `figures.cam_gallery`.
    """

    out: Path
    split: str
    num_images: int
    num_masks: int
    shares: pd.DataFrame
    miou: dict[str, float]
    constant: dict[str, list[str]]
    shown: list[tuple[str, dict[str, np.ndarray | None]]] = field(repr=False)

    def __str__(self) -> str:
        """Counts, a table in per cent, and constant labels."""
        table = 100 * self.shares
        if self.miou:
            table.loc[MIOU] = 100 * pd.Series(self.miou)
        decided = " of the pixels that are not ignored" if self.shares.loc["ignored"].any() else ""
        measured = f"; mIoU{decided} over {self.num_masks} of them that have a mask" if self.miou else ""
        lines = [
            f"{self.num_images} images of {self.split}, pseudo labels in {self.out}",
            f"per cent of the pixels{measured}",
            table.to_string(float_format="{:.1f}".format),
        ]
        for kind, names in self.constant.items():
            if names:
                lines.append(f"one value throughout: {kind} of {len(names)} images ({_first(names)})")
        return "\n".join(lines)


# --- labels of a batch ------------------------------------------------------------------------------------------------


def label_maps(
    cams: Cams,
    pixels: Tensor,
    thresholds: Thresholds,
    *,
    kinds: Iterable[str],
    dilations: Sequence[int],
    num_iter: int,
) -> dict[str, Tensor]:
    """Pseudo labels of all kinds from one pair of CAMs.

    * `seed`, `aux`: thresholds on the CAM, on the auxiliary CAM (`labels.confident_label`);
    * `refined`: the CAM after PAR (`refine.refine_cam`);
    * `crf`: the CAM after the dense CRF (`crf_label`).

    Args:
        cams: Of the present classes, (B, S, H, W).
        pixels: (B, 3, H, W), values in [0, 255].
        thresholds: With equal ones nothing is ignored.
        kinds: Names of `TARGETS`.
        dilations, num_iter: Of PAR.

    Returns:
        By kind, (B, H, W) int64: 0 background, 1..C classes, 255 ignored.
    """
    low, high = thresholds.low, thresholds.high
    make = {
        "seed": lambda: confident_label(cams.cam, cams.present, low=low, high=high),
        "aux": lambda: confident_label(cams.cam_aux, cams.present, low=low, high=high),
        "refined": lambda: refine_cam(
            pixels / 255, cams.cam, cams.present, low=low, high=high, dilations=dilations, num_iter=num_iter
        ),
        "crf": lambda: crf_label(pixels, cams.cam, cams.present, low=low, high=high),
    }  # fmt: skip
    return {kind: make[kind]() for kind in kinds}


# --- a whole split ----------------------------------------------------------------------------------------------------


def write_pseudo_labels(
    run: RunDir,
    *,
    split: str | None = None,
    out: Path | str | None = None,
    kinds: Sequence[str] = DEFAULT_KINDS,
    thresholds: Thresholds | None = None,
    scores: bool = False,
    images: str | None = None,
    device: str = "auto",
    progress: bool = True,
) -> PseudoLabels:
    """Write the pseudo labels of a split, image by image, from a run's last checkpoint.

    Killed and called again it continues, if the protocol is the same, and ends with the same bytes; kinds may be added
    later.

    Args:
        run: A trained run.
        split: None takes `cfg.train_split`, of which all images the run trains on are labelled.
        out: None takes pseudo_labels/<split> in the run's folder.
        kinds: Names of `TARGETS`, see `label_maps`. All come from one CAM pass.
        thresholds: None takes `cfg.background_threshold` alone, as `evaluate` does.
        scores: Write the soft scores of `seed` and `aux` as well, see `save_scores`.
        images: Also make the images part of the folders: `link` or `copy`. Those in no file are written as PNGs.
        device: auto, cpu, cuda ...
        progress: Show a progress bar.

    Raises:
        ValueError: If something asked for does not exist; if the output would be read as ground truth, or lies where
            something else does; or if the labels of one kind are all constant: the model has learnt nothing.
        DataError: If images can not be read, or have no image label.
    """
    kinds = tuple(dict.fromkeys(kinds))
    _check_request(kinds, scores, images)
    model, cfg = load_run_model(run, resolve_device(device))
    split = split or cfg.train_split
    out = Path(out) if out else run.path / "pseudo_labels" / split
    one = cfg.background_threshold
    thresholds = thresholds or Thresholds(one, one)
    # val_images is about evaluation; the training list has its own limit, train_images
    listed = cfg.replace(val_images=0) if split == cfg.train_split else cfg
    samples = eval_samples(listed, model.mean, model.std, split)
    check_output(out, kinds, cfg, samples.reader.root, images=bool(images))
    _check_labels(samples, split)
    names, checkpoint = samples.reader.names[: len(samples)], weights_hash(run.checkpoints()[-1])
    records = {kind: kind_record(cfg, kind, split, names, checkpoint, thresholds) for kind in kinds}
    for kind, record in records.items():
        _check_folder(out / kind, record)

    tallies = {kind: _Tally(cfg.num_classes + 1) for kind in kinds}
    originals = _image_files(cfg, samples.reader.root) if images else {}
    image_labels, shown, num_masks = {}, [], 0
    with tqdm(total=len(samples), unit="image", desc=f"pseudo labels {split}", disable=not progress) as bar:
        for made in _once_alive(_made(model, cfg, samples, out, kinds, thresholds, scores), kinds):
            if not image_labels:  # only now: a model that has learnt nothing leaves no folder behind
                for kind, record in records.items():
                    with atomic_write(out / kind / "protocol.json", "w") as file:
                        json.dump(record, file, indent=1)
            sample = made.sample
            for kind, label in made.labels.items():
                if kind in made.scores:
                    save_scores(_scores_path(out, kind, sample.name), sample.image_label, made.scores[kind])
                if kind in made.new:
                    save_mask(_label_path(out, kind, sample.name), label)
                tallies[kind].add(sample, label)
            if images:
                _place_image(out / IMAGES, sample, originals.get(sample.name), link=images == "link")
            if len(shown) < NUM_IMAGES:
                truth = None if sample.mask is None else sample.mask.numpy()
                shown.append((sample.name, {"image": sample.raw, "truth": truth} | made.labels))
            image_labels[sample.name] = sample.image_label.numpy()
            num_masks += sample.mask is not None
            bar.update()
    for kind in kinds:
        _write_tables(out / kind, split, class_names(cfg), image_labels)
        if images:
            _link(out / kind / IMAGES, Path("..") / IMAGES)
    rows = [*label_names(cfg), "ignored"]
    return PseudoLabels(
        out=out, split=split, num_images=len(names), num_masks=num_masks,
        shares=pd.DataFrame({kind: tally.shares() for kind, tally in tallies.items()}, index=rows),
        miou={kind: tally.miou(cfg.miou_over) for kind, tally in tallies.items()} if num_masks else {},
        constant={kind: tally.constant for kind, tally in tallies.items()}, shown=shown,
    )  # fmt: skip


def kind_record(
    cfg: Config, kind: str, split: str, names: Sequence[str], checkpoint: str, thresholds: Thresholds
) -> dict[str, Any]:
    """What defines the labels of a kind: `evaluate.protocol_record` and what is particular to labels."""
    record = protocol_record(cfg, TARGETS[kind], split, len(names), checkpoint)
    del record["background_threshold"], record["miou_over"]
    par = {"dilations": cfg.par_dilations, "iterations": cfg.par_iterations, "scale": _defaults(refine_cam)["scale"]}
    probability = "softmax over a constant background score and the CAM of the present classes"
    record |= {
        "kind": kind, "low_threshold": thresholds.low, "high_threshold": thresholds.high,
        "par": par if kind == "refined" else False,
        "crf": {"probability": probability, **_defaults(dense_crf)} if kind == "crf" else False,
        "image_labels": "masks" if cfg.dataset == "toy" else cfg.label_source, "classes": class_names(cfg),
        "names": hashlib.sha256("\n".join(names).encode()).hexdigest()[:12], "config": cfg.digest(),
    }  # fmt: skip
    return json.loads(json.dumps(record))  # lists for tuples: as it is read back


def save_scores(path: Path, image_label: Tensor, cam: Tensor) -> None:
    """Write the CAM of the present classes as an .npz of `classes`, (P,) uint8, numbers 1..C as in the masks, and
    `scores`, (P, H, W) float16 in [0, 1], in the same order. (The labels come from the scores before rounding.)

    Args:
        path: The file.
        image_label: (C,) in {0, 1}.
        cam: (C, H, W).
    """
    present = image_label.nonzero().flatten()
    scores = cam[present.to(cam.device)].half().cpu().numpy()
    with atomic_write(path) as file:
        np.savez_compressed(file, classes=(present + 1).numpy().astype(np.uint8), scores=scores)


# --- guards -----------------------------------------------------------------------------------------------------------


def check_output(out: Path, kinds: Iterable[str], cfg: Config, root: Path, *, images: bool = False) -> None:
    """Refuse a folder in which the run would read these labels as ground truth, or that would lie among its images.

    Args:
        out: Folder of the kinds.
        kinds: Their names.
        cfg: Says which layout the data set has.
        root: Folder of the data set.
        images: Whether images will be placed as well.

    Raises:
        ValueError: Naming both folders.
    """
    if cfg.dataset == "toy":
        return  # scenes lie in no file
    layout = LAYOUTS[cfg.dataset]
    written = [out / kind / MASKS for kind in kinds] + [out / IMAGES] * images
    for mine in written:
        for read in (root / below for below in (*layout.masks, *layout.images)):
            one, other = mine.resolve(), read.resolve()
            if one == other or one in other.parents or other in one.parents:
                what = "ground truth" if read.relative_to(root).as_posix() in layout.masks else "images"
                raise ValueError(
                    f"the output would go to {mine}, but this run reads its {what} from {read}: predictions must not "
                    "pass for data. Choose another --out"
                )


def _check_request(kinds: Sequence[str], scores: bool, images: str | None) -> None:
    unknown = set(kinds) - set(TARGETS)
    if unknown or not kinds:
        wrong = f"unknown kind {', '.join(sorted(unknown))}" if unknown else "no kind of pseudo label asked for"
        raise ValueError(f"{wrong}; there are {', '.join(TARGETS)}")
    if scores and not set(kinds) & set(SCORED):
        raise ValueError(f"scores belong to {' and '.join(SCORED)}: add one of them to the kinds {', '.join(kinds)}")
    if images not in (None, "link", "copy"):
        raise ValueError(f"images must be 'link' or 'copy', got {images!r}")


def _check_labels(samples: EvalSamples, split: str) -> None:
    reader = samples.reader
    has_mask = reader.has_masks()[: len(samples)]
    if samples.label_from_mask and not all(has_mask):
        raise DataError(
            f"{has_mask.count(False)} of {len(samples)} images of {split!r} in {reader.root} have no mask and so no "
            f"image label, the first is {reader.names[has_mask.index(False)]}: nothing says which classes of the CAM "
            "count. Make a list of the others, or train with a label file (`label_source`)"
        )


def _check_folder(folder: Path, record: Mapping[str, Any]) -> None:
    """Only labels of the same protocol may lie there already."""
    path, mend = folder / "protocol.json", f"Delete {folder}, or choose another --out"
    if not path.is_file():
        if folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise ValueError(f"{folder} holds files and no protocol.json: nobody knows what they are. {mend}")
        return
    try:
        there = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} can not be read ({error}). {mend}") from error
    differing = [
        f"{key} ({there.get(key)!r} there, {record.get(key)!r} wanted)"
        for key in sorted({*there, *record})
        if there.get(key) != record.get(key)
    ]
    if differing:
        raise ValueError(f"{folder} holds pseudo labels of another protocol: {', '.join(differing)}. {mend}")


def _once_alive(results: "Iterator[_Made]", kinds: Sequence[str]) -> "Iterator[_Made]":
    """`results`, the first of them only once each kind had a label of more than one value.

    Raises:
        ValueError: If some kind has none in `PATIENCE` images that show a class, or in all.
    """
    held, dead = [], set(kinds)
    for made in results:
        held.append(made)
        dead -= {kind for kind in kinds if not _is_constant(made.labels[kind])}
        if not dead:
            yield from held
            yield from results
            return
        if sum(bool(past.sample.image_label.any()) for past in held) >= PATIENCE:
            break
    values = sorted({int(made.labels[kind].flat[0]) for kind in dead for made in held})
    raise ValueError(
        f"every {' and '.join(kind for kind in kinds if kind in dead)} label of the first {len(held)} images "
        f"({_first([made.sample.name for made in held])}) is one value throughout ({', '.join(map(str, values))}): the "
        "CAMs are constant, the model has learnt nothing, or the thresholds do not fit it. Nothing new was written; "
        "train on, or change the thresholds"
    )


def _is_constant(label: np.ndarray) -> bool:
    return bool((label == label.flat[0]).all())


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


# --- image by image ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Made:
    """One image with its labels, (H, W) uint8 by kind, made now or read back."""

    sample: EvalSample
    labels: dict[str, np.ndarray]
    new: Sequence[str]  # kinds still to be written
    scores: dict[str, Tensor]  # (C, H, W) by kind, where they are to be written


def _made(
    model: ToCo,
    cfg: Config,
    samples: EvalSamples,
    out: Path,
    kinds: Sequence[str],
    thresholds: Thresholds,
    scores: bool,
) -> Iterator[_Made]:
    """Images in order. A group of which a file is missing is made anew as a whole: a group of another size rounds
    differently, and a continued command would not end with the same bytes.
    """
    device = next(model.parameters()).device
    scored = [kind for kind in kinds if scores and kind in SCORED]
    for group in grouped_by_size(samples, BATCH):
        new = [
            kind
            for kind in kinds
            if not all(
                _label_path(out, kind, sample.name).is_file()
                and (kind not in scored or _scores_path(out, kind, sample.name).is_file())
                for sample in group
            )
        ]
        if new:
            image = torch.stack([sample.image for sample in group]).to(device)
            label = torch.stack([sample.image_label for sample in group]).to(device)
            cams = native_cams(model, cfg, image, label)
            dense = cams.dense() if scored else cams
            pixels = denormalise(image, model.mean, model.std).clamp(0, 255)
            labels = label_maps(
                cams, pixels, thresholds, kinds=new, dilations=cfg.par_dilations, num_iter=cfg.par_iterations
            )
            labels = {kind: found.to(torch.uint8).cpu().numpy() for kind, found in labels.items()}
        for i, sample in enumerate(group):
            yield _Made(
                sample,
                {k: labels[k][i] if k in new else _read_label(_label_path(out, k, sample.name)) for k in kinds},
                new,
                {kind: getattr(dense, SCORED[kind])[i] for kind in scored if kind in new},
            )


class _Tally:
    """Counts over the labels of one kind."""

    def __init__(self, num_labels: int) -> None:
        self.num_labels = num_labels  # K
        self.pixels = np.zeros(IGNORE_INDEX + 1, np.int64)
        # truth in rows; ignored pixels of the prediction are the last column
        self.matrix = torch.zeros(num_labels + 1, num_labels + 1, dtype=torch.int64)
        self.constant: list[str] = []

    def add(self, sample: EvalSample, label: np.ndarray) -> None:
        self.pixels += np.bincount(label.ravel(), minlength=IGNORE_INDEX + 1)
        if sample.image_label.any() and _is_constant(label):
            self.constant.append(sample.name)
        if sample.mask is not None:
            predicted = torch.from_numpy(label.astype(np.int64))
            predicted = predicted.masked_fill(predicted == IGNORE_INDEX, self.num_labels)
            self.matrix += confusion_matrix(predicted, sample.mask, self.num_labels + 1)

    def shares(self) -> np.ndarray:
        """(K + 1,): of each number, and of 255."""
        return np.append(self.pixels[: self.num_labels], self.pixels[IGNORE_INDEX]) / self.pixels.sum()

    def miou(self, over: str) -> float:
        """See `PseudoLabels.miou`."""
        iou = iou_scores(self.matrix[:-1, :-1]).iou
        in_truth = self.matrix[:-1].sum(1) > 0
        iou[in_truth] = iou[in_truth].nan_to_num(0)
        return (iou[in_truth] if over == "present" else iou).mean().item()


# --- files ------------------------------------------------------------------------------------------------------------


def _label_path(out: Path, kind: str, name: str) -> Path:
    return out / kind / MASKS / f"{name}.png"


def _scores_path(out: Path, kind: str, name: str) -> Path:
    return out / kind / "scores" / f"{name}.npz"


def _read_label(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as file:
            return np.array(file)
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # PIL raises SyntaxError for a broken PNG
        raise DataError(f"cannot decode {path}: {error}. Delete it: the same command makes it again") from error


def _image_files(cfg: Config, root: Path) -> dict[str, Path]:
    """Image name -> file; empty for toy scenes."""
    layout = LAYOUTS.get(cfg.dataset)
    return locate(root, layout.images, layout.suffixes) if layout else {}


def _place_image(folder: Path, sample: EvalSample, original: Path | None, *, link: bool) -> None:
    """The image of a sample under its name, unless it is there already; a copy takes the place of a link."""
    path = folder / f"{sample.name}{original.suffix if original else '.png'}"
    if path.is_file() and (link or not path.is_symlink()):
        return
    if original is None:
        with atomic_write(path) as file:
            Image.fromarray(sample.raw).save(file, format="PNG")
    elif link:
        _link(path, original.resolve())
    else:
        with original.open("rb") as source, atomic_write(path) as file:
            shutil.copyfileobj(source, file)


def _link(path: Path, target: Path) -> None:
    if path.is_symlink():
        path.unlink()  # it may lead nowhere any more
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.symlink_to(target)
    except OSError as error:
        raise ValueError(
            f"no link {path} to {target} can be made: {error}. Leave --images out and put the images there yourself"
        ) from error


def _write_tables(folder: Path, split: str, classes: Sequence[str], image_labels: Mapping[str, np.ndarray]) -> None:
    """List, image labels and class names, in the form of `data/README.md`."""
    for path, lines in ((folder / LISTS / f"{split}.txt", image_labels), (folder / "classes.txt", classes)):
        with atomic_write(path, "w") as file:
            file.write("".join(f"{line}\n" for line in lines))
    (folder / "labels.csv").unlink(missing_ok=True)  # of an earlier call: the protocol is the same
    table = {name: [classes[place] for place in np.flatnonzero(label)] for name, label in image_labels.items()}
    write_labels(folder / "labels.csv", table)


def _defaults(function: Any) -> dict[str, Any]:
    """Defaults of the keyword-only arguments of a decorated function: the settings it runs with here."""
    return dict(inspect.unwrap(function).__kwdefaults__)
