"""What the study on photographs measures beyond its grid: frozen tokens as a lower and an upper mark, and curves.

Run by `python -m toco_lab study photographs`.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

import toco_lab as tl
from toco_lab.backbones.pixels import normalise
from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.data.classes import PALETTE, class_names, label_names
from toco_lab.data.loader import EvalSample, eval_samples
from toco_lab.data.readers import open_dataset
from toco_lab.evaluation.cam_per_layer import layer_cam_quality
from toco_lab.evaluation.samples import mask_of
from toco_lab.evaluation.scores import confusion_matrix, iou_scores
from toco_lab.figures import printed, series
from toco_lab.figures.colours import assign_colours
from toco_lab.figures.pictures import box_pixels, cam_gallery
from toco_lab.files import atomic_write
from toco_lab.method.cam import at_evaluation_size, resize
from toco_lab.method.face import CamModel
from toco_lab.reports.studies import Study, labels_and_activation, write_results
from toco_lab.runs.run_dir import RunDir
from toco_lab.runs.scores import SHOWN, TITLES
from toco_lab.sweeps.grid import PlannedRun
from toco_lab.training.checkpoints import initial_model
from toco_lab.vocabulary import AFTER_BLOCK, CAM, MEAN_ABSOLUTE_COSINE, MIOU, NEGATIVE_COSINE, POSITIVE_COSINE, TUNED

BESIDE = ("cam_refined_tuned_mIoU", "seg_crf_mIoU", "similarity_first", "positive_cosine", "negative_cosine")
OF_COMMON_CLASSES = ("cam_mIoU", "cam_tuned_mIoU", "seg_mIoU")
PER_CLASS = "per_class.csv"
COMMON = 30  # training images that show a class, so that it can be learnt at all
CURVES = ("frozen", "as published", "random heads first", "classification", "+ PTC", "full ToCo")  # rows of the figure
PROBE_STEPS, PROBE_RATE = 600, 0.01
SHOWN_FOLDER = Path("data/shown")  # photographs NAME.jpg of the picture `shown.png`, classes and patch in marks.json
MARK = np.array([255, 255, 255])
MODELS = ("frozen", "as published", "+ PTC")  # rows of the grid


def write(study: Study, root: Path) -> str:
    """Table and summary of the finished runs, with what frozen tokens can do; the figure has a curve for each row."""
    finished = [run for run in study.grid.runs(root) if (run.folder / "smoothing.csv").is_file()]
    runs = {run.row: RunDir(run.folder) for run in reversed(finished)}
    classes = class_scores(finished)
    if study.extends and (study.folder / PER_CLASS).is_file():
        kept = pd.read_csv(study.folder / PER_CLASS)
        classes = pd.concat([classes, kept]).drop_duplicates(["row", "seed", "class"])
    with atomic_write(study.folder / PER_CLASS, "w") as file:
        classes.round(1).to_csv(file, index=False, lineterminator="\n")
    if SHOWN_FOLDER.is_dir() and set(MODELS) <= set(runs):
        with atomic_write(study.folder / "shown.png") as file:
            printed.write_png(file, shown(runs), dpi=70)
    return write_results(
        study, root, scores=(*SHOWN, *BESIDE), measures=measures,
        further_rows=frozen_table(study), picture=lambda _: picture(runs),
    )  # fmt: skip


def measures(run: RunDir) -> dict[str, float]:
    """mIoU of what a few images can teach, F1 of the image labels, and how much background the CAMs light."""
    table = run.read_table("evaluation")
    common = 100 * table[table["class"].isin(common_classes(run.config()))].groupby("target")["iou"].mean()  # points
    return {
        **{
            f"{TITLES[score]}, common classes": common.get(score[: -len("_mIoU")], np.nan)
            for score in OF_COMMON_CLASSES
        },
        **labels_and_activation(run),
    }


def class_scores(finished: Sequence[PlannedRun]) -> pd.DataFrame:
    """IoU of each class in points, final CAM at the tuned threshold: row, seed, class, its training images, iou."""
    shown = images_of_classes(finished[0].config)
    tables = []
    for run in finished:
        table = RunDir(run.folder).read_table("evaluation")
        table = table[(table["target"] == TUNED[CAM]) & (table["class"] != MIOU)]
        about = {"row": run.row, "seed": run.seed, "class": table["class"]}
        tables.append(pd.DataFrame(about | {"images": table["class"].map(shown), "iou": 100 * table["iou"]}))
    return pd.concat(tables)


def common_classes(cfg: Config) -> list[str]:
    """Background and every class that `COMMON` training images show or more."""
    background, *_ = label_names(cfg)
    return [background, *(name for name, count in images_of_classes(cfg).items() if count >= COMMON)]


def images_of_classes(cfg: Config) -> dict[str, int]:
    """How many training images show each class."""
    reader = open_dataset(cfg, cfg.train_split)
    counts = sum(reader.image_label(index) for index in range(len(reader)))
    return {name: int(count) for name, count in zip(class_names(cfg), counts, strict=True)}


def frozen_table(study: Study) -> pd.DataFrame:
    """The lines of `frozen_lines`, which no run can change: those of the kept table where that is extended."""
    if study.extends:
        table = study.table()
        if (lines := table[table["run"].isna()]).size:
            return lines.dropna(axis=1, how="all").drop(columns="reference", errors="ignore")
    return pd.DataFrame(frozen_lines(study.grid.runs()[0].config))


def frozen_lines(cfg: Config) -> Iterator[dict[str, float | str | int]]:
    """Two marks: the CAM of the best frozen block, and what a linear map of frozen tokens learns from true masks."""
    model = initial_model(cfg).eval()
    layers = layer_cam_quality(model, cfg, num_train=10**6, num_images=10**6)
    best = layers.loc[layers["miou"].idxmax()]
    own = layers[layers["own"] & (layers["layer"] == best["layer"]) & (layers["site"] == best["site"])]
    yield {
        "row": f"frozen encoder, block {best['layer']:.0f} (threshold {best['threshold']} of the scored images)",
        "seed": 0, "cam_mIoU": float(own["miou"].iloc[0]), "cam_tuned_mIoU": float(best["miou"]),
    }  # fmt: skip
    yield {"row": "frozen encoder, linear map taught by masks", "seed": 0, "seg_mIoU": taught_by_masks(model, cfg)}


def taught_by_masks(model: CamModel, cfg: Config) -> float:
    """mIoU of a linear map of the frozen last tokens that saw every training mask, at the resolution of tokens."""
    samples = eval_samples(cfg, model.mean, model.std, cfg.train_split)
    train = [labelled_tokens(model, cfg, sample) for sample in samples]
    tokens, labels = torch.cat([one for one, _ in train]), torch.cat([label for _, label in train])
    mean, spread = tokens.mean(0), tokens.std(0)
    torch.manual_seed(0)
    head = torch.nn.Linear(tokens.shape[1], cfg.num_classes + 1)
    optimizer = torch.optim.AdamW(head.parameters(), PROBE_RATE)
    for step in range(PROBE_STEPS):
        optimizer.param_groups[0]["lr"] = PROBE_RATE * (1 - step / PROBE_STEPS)
        drawn = torch.randint(len(tokens), (4096,))
        logits = head((tokens[drawn] - mean) / spread)
        optimizer.zero_grad()
        F.cross_entropy(logits, labels[drawn], ignore_index=IGNORE_INDEX).backward()
        optimizer.step()
    matrix = torch.zeros(cfg.num_classes + 1, cfg.num_classes + 1, dtype=torch.int64)
    for sample in eval_samples(cfg, model.mean, model.std):
        found, grid = final_tokens(model, cfg, sample)
        truth = mask_of(sample)
        with torch.no_grad():
            logits = head((found - mean) / spread).mT.unflatten(1, grid)[None]
        matrix += confusion_matrix(resize(logits, truth.shape).argmax(1)[0], truth, cfg.num_classes + 1)
    return iou_scores(matrix).miou.item()


def labelled_tokens(model: CamModel, cfg: Config, sample: EvalSample) -> tuple[Tensor, Tensor]:
    """Final patch tokens (N, D) of an image and the label in the middle of each, (N,)."""
    tokens, grid = final_tokens(model, cfg, sample)
    label = F.interpolate(mask_of(sample)[None, None].float(), size=grid, mode="nearest-exact").long().flatten()
    return tokens, label.where(label <= cfg.num_classes, IGNORE_INDEX)


@torch.no_grad()
def final_tokens(model: CamModel, cfg: Config, sample: EvalSample) -> tuple[Tensor, tuple[int, int]]:
    """Patch tokens after the final norm, (N, D), and their grid."""
    features = model.encode(at_evaluation_size(sample.image[None], cfg.eval_cam_size))
    return features.patch_tokens[0].flatten(1).mT, features.patch_tokens.shape[-2:]


def shown(runs: dict[str, RunDir]) -> Figure:
    """Photographs, how alike the final tokens of three models are to that of a marked patch, CAMs and a mask."""
    marks = json.loads((SHOWN_FOLDER / "marks.json").read_text())
    rows: list[dict[str, np.ndarray | None]] = []
    for name, mark in marks.items():
        image = tl.decode_image(SHOWN_FOLDER / f"{name}.jpg")
        row: dict[str, np.ndarray | None] = {"photograph": box_pixels(image, [(mark["box"], MARK)])}
        maps = {model: alike(runs[model], image, mark["box"]) for model in MODELS}
        made = {model: tl.load(runs[model].path).predict(image, classes=mark["classes"]) for model in MODELS}
        row |= {f"alike: {model}": one for model, one in maps.items()}
        row |= {f"CAM: {model}": one.cam(mark["classes"][0]) for model, one in made.items()}
        rows.append(row | {f"mask: {MODELS[-1]}": made[MODELS[-1]].mask})
    return cam_gallery(rows, palette=PALETTE, class_names=label_names(runs["frozen"].config()))


@torch.no_grad()
def alike(run: RunDir, image: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """Absolute cosine of all final patch tokens of an image (H, W, 3) to that in the middle of a box, (H, W)."""
    model, cfg = tl.load_run_model(run)
    pixels = normalise(torch.from_numpy(image).movedim(2, 0)[None].float(), model.mean, model.std)
    tokens = model.encode(at_evaluation_size(pixels, cfg.eval_cam_size)).patch_tokens
    height, width = tokens.shape[-2:]
    x0, y0, x1, y1 = box
    row, column = (y0 + y1) * height // (2 * image.shape[0]), (x0 + x1) * width // (2 * image.shape[1])
    unit = F.normalize(tokens[0], dim=0)
    cosine = (unit * unit[:, row, column, None, None]).sum(0).abs()
    return resize(cosine[None, None], image.shape[:2])[0, 0].numpy()


def picture(runs: dict[str, RunDir]) -> Figure:
    """How alike patch tokens are after each block, all and by class, of the first seed of some rows."""
    shown = [runs[row].read_table("smoothing").assign(model=row) for row in CURVES if row in runs]
    frame = pd.concat(shown)
    frame = frame[frame["site"] == AFTER_BLOCK]
    lines = series.layer_lines(frame, [MEAN_ABSOLUTE_COSINE, POSITIVE_COSINE, NEGATIVE_COSINE])
    return printed.line_panels(lines, colours=assign_colours(frame["model"]), x_title="block")
