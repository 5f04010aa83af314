"""Pseudo labels as a data set: what is read back scores what evaluation says, and nothing wrong is written."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.folders import SAMPLES, make_voc, needs_samples, write_list
from PIL import Image

from toco_lab.backbones.weights import weights_hash
from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.data.classes import PALETTE, DataError, class_names
from toco_lab.data.loader import eval_samples
from toco_lab.data.own_folder import resolve
from toco_lab.data.readers import open_dataset
from toco_lab.evaluation import pseudo_labels
from toco_lab.evaluation.evaluate import evaluate_model
from toco_lab.evaluation.pseudo_labels import (
    TARGETS,
    Thresholds,
    crf_label,
    label_maps,
    native_cams,
    write_pseudo_labels,
)
from toco_lab.evaluation.scores import confusion_matrix, iou_scores
from toco_lab.method.cam import Cams, multi_scale_cam
from toco_lab.method.crf import dense_crf
from toco_lab.method.model import ToCo
from toco_lab.method.present import PresentClasses
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model

KINDS = tuple(TARGETS)
SMALL = {
    "backbone": "vit_tiny_patch16_224", "pretrained": False, "patch_size": 8, "image_size": 64, "embed_dim": 24,
    "depth": 4, "num_heads": 2, "decoder_width": 8, "head_hidden": 16, "head_bottleneck": 8, "head_out": 16,
    "par_dilations": (1, 2), "par_iterations": 2, "eval_cam_size": 64, "cam_scales": (1.0, 0.5), "num_workers": 0,
}  # fmt: skip


def make_run(cfg: Config, folder: Path, *, flat=False) -> RunDir:
    """A run with random weights; `flat` with a classifier that says the same everywhere."""
    torch.manual_seed(0)
    run, model = RunDir.create(cfg, folder, name="run"), ToCo(cfg)
    for head in (model.classifier, model.aux_classifier):
        torch.nn.init.constant_(head.weight, 0) if flat else torch.nn.init.normal_(head.weight)
    path = run.checkpoint_path(1)
    path.parent.mkdir()
    torch.save({"model": model.state_dict(), "optimizer": {}, "step": 1, "config": cfg.to_json()}, path)
    return run


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory) -> RunDir:
    """Random weights, three validation scenes. Shared: read only, but for its pseudo labels."""
    cfg = Config.preset("smoke").replace(val_images=3, train_images=4, crop_size=48, **SMALL)
    return make_run(cfg, tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def written(toy_run, tmp_path_factory):
    """All kinds of the validation scenes, with images and scores. Shared: read only."""
    out = tmp_path_factory.mktemp("out")
    return write_pseudo_labels(
        toy_run, split="val", out=out, kinds=KINDS, scores=True, images="link", device="cpu", progress=False
    )


def read_png(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def as_folder(written, kind: str, split: str = "val") -> Config:
    """What a second stage would train on."""
    root = written.out / kind
    return resolve(Config.preset("folder").replace(data_root=str(root), train_split=split, val_split=split))


def score(cfg: Config, predictions, truths) -> float:
    """mIoU of label maps."""
    pairs = zip(predictions, truths, strict=True)
    matrix = sum(confusion_matrix(torch.as_tensor(label).long(), truth, cfg.num_classes + 1) for label, truth in pairs)
    return iou_scores(matrix, over=cfg.miou_over).miou.item()


# --- the hand-over ----------------------------------------------------------------------------------------------------


def test_what_a_second_stage_reads_scores_what_evaluation_says(toy_run, written):
    model, cfg = load_run_model(toy_run)
    truth = eval_samples(cfg, model.mean, model.std)
    wanted = evaluate_model(model, cfg, progress=False).scores
    for kind in ("seed", "refined", "aux"):
        reader = open_dataset(as_folder(written, kind), "val")
        assert reader.names == truth.reader.names and reader.classes == class_names(cfg)
        for index, sample in enumerate(truth):
            assert np.array_equal(reader.image(index), sample.raw)
            assert np.array_equal(reader.image_label(index), sample.image_label)  # the true one, not that of the labels
        predictions = [reader.mask(index) for index in range(len(reader))]
        assert score(cfg, predictions, [sample.mask for sample in truth]) == wanted[TARGETS[kind]]
        assert written.miou[kind] == wanted[TARGETS[kind]]


def test_the_crf_gets_a_softmax_over_background_and_present_classes(toy_run, written):
    model, cfg = load_run_model(toy_run)
    for sample in eval_samples(cfg, model.mean, model.std):
        how = {"mode": "bilinear", "align_corners": False}
        resized = torch.nn.functional.interpolate(sample.image[None], (64, 64), **how)
        cam = multi_scale_cam(model, resized, cfg.cam_scales).cam
        cam = torch.nn.functional.interpolate(cam, (48, 48), **how)
        numbers = [0, *(np.flatnonzero(sample.image_label) + 1)]
        weights = torch.stack([torch.full((48, 48), 0.5).exp(), *(cam[0, number - 1].exp() for number in numbers[1:])])
        image = torch.from_numpy(sample.raw).permute(2, 0, 1)
        winner = dense_crf(image, (weights / weights.sum(0))[None]).argmax(1)[0]
        there = read_png(written.out / f"crf/SegmentationClass/{sample.name}.png")
        assert (np.array(numbers)[winner] == there).mean() > 0.999  # batches round differently
        assert set(np.unique(there)) <= set(numbers)


def test_masks_are_palette_pngs_in_vocs_colours_and_layout(written):
    for kind in KINDS:
        with Image.open(written.out / kind / "SegmentationClass/toy_val_000000.png") as file:
            assert file.mode == "P" and file.size == (48, 48)
            assert file.getpalette() == PALETTE.flatten().tolist()
        names = (written.out / kind / "ImageSets/Segmentation/val.txt").read_text().split()
        assert names == [f"toy_val_{index:06d}" for index in range(3)]
        assert sorted(path.stem for path in (written.out / kind / "SegmentationClass").iterdir()) == names
    voc_reader = Config.preset("voc_vit_b").replace(data_root=str(written.out / "seed"))
    assert open_dataset(voc_reader, "val").mask(0).shape == (48, 48)


def test_the_protocol_says_everything(toy_run, written):
    records = {kind: json.loads((written.out / kind / "protocol.json").read_text()) for kind in KINDS}
    for kind, record in records.items():
        assert (record["kind"], record["target"]) == (kind, TARGETS[kind])
        assert record["checkpoint"] == weights_hash(toy_run.checkpoints()[-1])
        assert (record["split"], record["images"], record["seed"]) == ("val", 3, 0)
        assert (record["image_size"], record["scales"], record["flip"]) == ("64 x 64", [1.0, 0.5], True)
        assert record["true_labels_mask_cam"] and record["image_labels"] == "masks"
        assert (record["low_threshold"], record["high_threshold"]) == (0.5, 0.5)
        assert record["par"] == ({"dilations": [1, 2], "iterations": 2, "scale": 0.5} if kind == "refined" else False)
        assert bool(record["crf"]) == (kind == "crf")
    crf = records["crf"]["crf"]
    assert (crf["iterations"], crf["bilateral_sigma_xy"], crf["bilateral_sigma_rgb"], crf["bilateral_weight"]) == (
        10, 121, 5, 4,
    )  # fmt: skip


def test_scores_are_those_the_seed_was_made_of(toy_run, written):
    model, cfg = load_run_model(toy_run)
    for sample in eval_samples(cfg, model.mean, model.std):
        for kind in ("seed", "aux"):
            with np.load(written.out / f"{kind}/scores/{sample.name}.npz") as file:
                classes, scores = file["classes"], file["scores"]
            assert classes.tolist() == (np.flatnonzero(sample.image_label) + 1).tolist()
            assert scores.dtype == np.float16 and scores.shape == (len(classes), 48, 48)
            expected = np.where(scores.max(0) <= 0.5, 0, classes[scores.argmax(0)])
            near = np.abs(scores.max(0) - 0.5) < 1e-3  # rounded to half precision
            tied = np.sort(scores, 0)[-2] == scores.max(0) if len(scores) > 1 else False
            label = read_png(written.out / f"{kind}/SegmentationClass/{sample.name}.png")
            assert np.array_equal(np.where(near | tied, 0, expected), np.where(near | tied, 0, label))
            assert near.mean() < 0.1
    assert not (written.out / "refined/scores").exists()


def test_the_summary_counts_pixels(toy_run, written):
    cfg = toy_run.config()
    for kind in KINDS:
        labels = np.stack([read_png(path) for path in (written.out / kind / "SegmentationClass").iterdir()])
        shares = written.shares[kind]
        assert shares.index.tolist() == ["background", *class_names(cfg), "ignored"]
        assert shares.tolist() == pytest.approx([(labels == number).mean() for number in [*range(7), 255]])
    assert (written.num_images, written.num_masks) == (3, 3)
    assert f"{100 * written.miou['seed']:.1f}" in str(written)
    assert len(written.shown) == 3 and list(written.shown[0][1]) == ["image", "truth", *KINDS]


def test_the_training_split_is_the_default_and_whole(toy_run):
    """`val_images` limits evaluation, `train_images` the training list: it is four scenes, not three."""
    done = write_pseudo_labels(toy_run, kinds=["seed"], device="cpu", progress=False)
    assert done.out == toy_run.path / "pseudo_labels" / "train" and done.num_images == 4
    assert {path.name for path in (done.out / "seed").iterdir()} == {
        "SegmentationClass", "ImageSets", "labels.csv", "classes.txt", "protocol.json",
    }  # fmt: skip


# --- thresholds -------------------------------------------------------------------------------------------------------


def make_cams() -> tuple[Cams, torch.Tensor]:
    """Two images of 12 x 16 pixels, three classes; the first shows class 1 and 3, the second none."""
    generator = torch.Generator().manual_seed(3)
    cam = torch.rand(2, 3, 12, 16, generator=generator)
    present = PresentClasses.of(torch.tensor([[1, 0, 1], [0, 0, 0]]))
    cam = present.gather(cam)
    return Cams(cam, cam.flip(-1), present), 255 * torch.rand(2, 3, 12, 16, generator=generator)


def test_255_lies_between_the_thresholds():
    cams, pixels = make_cams()
    found = label_maps(cams, pixels, Thresholds(0.25, 0.75), kinds=KINDS, dilations=(1, 2), num_iter=3)
    assert tuple(found) == KINDS
    for kind, cam in (("seed", cams.dense().cam), ("aux", cams.dense().cam_aux)):
        for y in range(12):
            for x in range(16):
                best = max((cam[0, c, y, x].item(), c + 1) for c in range(3))
                expected = best[1] if best[0] > 0.75 else 255 if best[0] > 0.25 else 0
                assert found[kind][0, y, x] == expected
    for kind in ("refined", "crf"):
        strict, loose = (
            label_maps(cams, pixels, Thresholds(t, t), kinds=[kind], dilations=(1, 2), num_iter=3)[kind]
            for t in (0.75, 0.25)
        )
        assert not (strict == 255).any() and not (loose == 255).any()
        assert torch.equal(found[kind], torch.where((strict == 0) & (loose != 0), 255, strict))
        assert (found[kind][0] == 255).any()
    assert all((label[1] == 0).all() for label in found.values())  # no class, no score


def test_an_absent_class_never_wins_in_the_crf():
    """Class 2 is absent but has the highest score: only the image labels keep it out."""
    cams, pixels = make_cams()
    dense = cams.dense()
    dense.cam[0, 1] = 1
    label = crf_label(pixels, dense.cam, dense.present, low=0.1, high=0.1)
    assert set(label[0].unique().tolist()) <= {0, 1, 3}
    assert torch.equal(label, crf_label(pixels, cams.cam, cams.present, low=0.1, high=0.1))


@pytest.mark.parametrize(("low", "high"), [(0.7, 0.3), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 0.5)])
def test_thresholds_out_of_order_are_refused(low, high):
    with pytest.raises(ValueError, match="0 <= low <= high <= 1"):
        Thresholds(low, high)


def test_the_score_of_labels_with_255_counts_decided_pixels(toy_run, tmp_path):
    model, cfg = load_run_model(toy_run)
    done = write_pseudo_labels(
        toy_run, split="val", out=tmp_path, kinds=["seed"], thresholds=Thresholds(0.25, 0.7), progress=False
    )
    truth = np.stack([sample.mask for sample in eval_samples(cfg, model.mean, model.std)])
    names = eval_samples(cfg, model.mean, model.std).reader.names
    label = np.stack([read_png(tmp_path / f"seed/SegmentationClass/{name}.png") for name in names])
    decided, ious = label != 255, []
    for number in np.unique(truth):
        hits = (decided & (label == number) & (truth == number)).sum()
        either = (decided & ((label == number) | (truth == number))).sum()
        ious.append(hits / either if either else 0)
    assert done.miou["seed"] == pytest.approx(np.mean(ious))
    assert done.shares.loc["ignored", "seed"] == pytest.approx((~decided).mean()) and (~decided).any()
    assert "not ignored" in str(done)


# --- guards -----------------------------------------------------------------------------------------------------------


def test_a_model_in_training_mode_is_refused(toy_run):
    model, cfg = load_run_model(toy_run)
    sample = eval_samples(cfg, model.mean, model.std)[0]
    arguments = (cfg, sample.image[None], sample.image_label[None])
    native_cams(model, *arguments)
    model.encoder.blocks[1].train()
    with pytest.raises(ValueError, match=r"training mode \(encoder.blocks.1\)"):
        native_cams(model, *arguments)
    with pytest.raises(ValueError, match=r"training mode \(all of it\)"):
        native_cams(model.train(), *arguments)


def test_constant_cams_are_refused_and_leave_nothing(tmp_path):
    cfg = Config.preset("smoke").replace(val_images=3, crop_size=64, **SMALL)
    run = make_run(cfg, tmp_path, flat=True)
    with pytest.raises(ValueError, match=r"every seed and crf label of the first 3 images .*toy_val_000001.* \(0\)"):
        write_pseudo_labels(run, split="val", out=tmp_path / "out", kinds=["seed", "crf"], progress=False)
    assert not (tmp_path / "out").exists()


def test_one_dead_kind_is_named_and_given_up_early(toy_run, tmp_path, monkeypatch):
    real, seen = pseudo_labels.label_maps, []

    def without_crf(cams, *arguments, **options):
        seen.append(len(cams.cam))
        found = real(cams, *arguments, **options)
        return found | {"crf": torch.full_like(found["crf"], 2)}

    monkeypatch.setattr(pseudo_labels, "label_maps", without_crf)
    monkeypatch.setattr(pseudo_labels, "PATIENCE", 2)
    monkeypatch.setattr(pseudo_labels, "BATCH", 1)
    with pytest.raises(ValueError, match=r"every crf label of the first 2 images .* \(2\)"):
        write_pseudo_labels(toy_run, split="val", out=tmp_path / "out", progress=False)
    assert seen == [1, 1] and not (tmp_path / "out").exists()


def test_some_constant_labels_are_named(toy_run, tmp_path, monkeypatch):
    real = pseudo_labels.label_maps

    def first_is_constant(*arguments, **options):
        found = real(*arguments, **options)
        found["seed"][0] = 0
        return found

    monkeypatch.setattr(pseudo_labels, "label_maps", first_is_constant)
    done = write_pseudo_labels(toy_run, split="val", out=tmp_path, kinds=["seed"], progress=False)
    assert "toy_val_000000" in done.constant["seed"]
    assert "one value throughout: seed of" in str(done)


def voc_run(tmp_path: Path, **changes) -> RunDir:
    return make_run(make_voc(tmp_path).replace(**(SMALL | changes)), tmp_path)


@pytest.mark.parametrize(
    ("out", "kind"),
    [
        ("SegmentationClass", "seed"),  # below the masks
        ("VOC2012/..", "VOC2012"),  # the data set itself would become the folder of a kind
        ("JPEGImages/deep", "seed"),
        ("link", "seed"),
    ],
)
def test_output_that_would_be_read_as_truth_is_refused(out, kind, tmp_path, monkeypatch):
    run = voc_run(tmp_path)
    root = tmp_path / "VOC2012"
    (root / "link" / "seed").mkdir(parents=True)
    (root / "link/seed/SegmentationClass").symlink_to(root / "SegmentationClassAug")
    monkeypatch.setitem(TARGETS, "VOC2012", "cam")
    before = files_of(root)
    where = tmp_path / out if out.startswith("VOC2012") else root / out
    with pytest.raises(ValueError, match=r"this run reads its (ground truth|images) from .*another --out"):
        write_pseudo_labels(run, out=where, kinds=[kind], progress=False)
    assert files_of(root) == before
    beside = write_pseudo_labels(run, out=root / "pseudo", kinds=["seed"], progress=False)  # this harms nobody
    assert beside.num_images == 3
    with pytest.raises(ValueError, match="reads its images from"):
        write_pseudo_labels(run, out=root, kinds=["seed"], images="copy", progress=False)


def test_a_folder_of_something_else_is_left_alone(toy_run, tmp_path):
    (tmp_path / "seed/SegmentationClass").mkdir(parents=True)
    (tmp_path / "seed/SegmentationClass/toy_val_000000.png").write_bytes(b"drawn by hand")
    with pytest.raises(ValueError, match=r"seed holds files and no protocol.json.*another --out"):
        write_pseudo_labels(toy_run, split="val", out=tmp_path, progress=False)
    (tmp_path / "seed/protocol.json").write_text("{")
    with pytest.raises(ValueError, match=r"protocol.json can not be read.*another --out"):
        write_pseudo_labels(toy_run, split="val", out=tmp_path, progress=False)
    assert (tmp_path / "seed/SegmentationClass/toy_val_000000.png").read_bytes() == b"drawn by hand"


def test_another_protocol_is_refused_with_what_differs(toy_run, tmp_path):
    options = {"out": tmp_path, "kinds": ["seed"], "progress": False}
    write_pseudo_labels(toy_run, split="val", **options)
    before = files_of(tmp_path)
    with pytest.raises(ValueError, match=r"low_threshold \(0.5 there, 0.25 wanted\)\. Delete .*seed"):
        write_pseudo_labels(toy_run, split="val", thresholds=Thresholds(0.25, 0.5), **options)
    with pytest.raises(ValueError, match=r"split \('val' there, 'train' wanted\)"):
        write_pseudo_labels(toy_run, **options)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["sed"]}, "unknown kind sed; there are seed"),
        ({"kinds": []}, "no kind"),
        ({"kinds": ["crf"], "scores": True}, "scores belong to seed and aux"),
        ({"images": "move"}, "'link' or 'copy', got 'move'"),
    ],
)
def test_wishes_that_can_not_be_met(options, message, toy_run, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_pseudo_labels(toy_run, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_images_without_a_label_are_named_before_anything_is_made(tmp_path):
    run = voc_run(tmp_path)
    root = tmp_path / "VOC2012"
    Image.new("RGB", (30, 20)).save(root / "JPEGImages/four.jpg")
    Image.new("RGB", (30, 20)).save(root / "JPEGImages/five.jpg")
    write_list(root, ["four", "five"], "test")
    with pytest.raises(DataError, match=r"2 of 2 images of 'test'.*the first is four.*label file"):
        write_pseudo_labels(run, split="test", out=tmp_path / "out", progress=False)


# --- killed and continued ---------------------------------------------------------------------------------------------


def test_killed_and_continued_gives_the_same_bytes_and_no_work_twice(toy_run, tmp_path, monkeypatch):
    options = {"split": "val", "kinds": ("seed", "refined"), "scores": True, "images": "link", "progress": False}
    monkeypatch.setattr(pseudo_labels, "BATCH", 2)
    whole = write_pseudo_labels(toy_run, out=tmp_path / "whole", **options)

    real_save, saved = pseudo_labels.save_mask, []

    def save_five(path, *arguments, **keywords):
        if len(saved) == 5:  # two kinds of two scenes; of the third its seed alone
            raise KeyboardInterrupt
        saved.append(path)
        real_save(path, *arguments, **keywords)

    monkeypatch.setattr(pseudo_labels, "save_mask", save_five)
    with pytest.raises(KeyboardInterrupt):
        write_pseudo_labels(toy_run, out=tmp_path / "part", **options)
    assert not (tmp_path / "part/seed/ImageSets").exists()  # no list: nobody takes it for finished
    monkeypatch.setattr(pseudo_labels, "save_mask", real_save)

    real_cams, made = pseudo_labels.native_cams, []

    def counted(model, cfg, image, image_label):
        made.append(len(image))
        return real_cams(model, cfg, image, image_label)

    monkeypatch.setattr(pseudo_labels, "native_cams", counted)
    part = write_pseudo_labels(toy_run, out=tmp_path / "part", **options)
    assert made == [1]  # the first pair was finished
    assert files_of(tmp_path / "part") == files_of(tmp_path / "whole")
    assert part.shares.equals(whole.shares) and part.miou == whole.miou
    before = files_of(tmp_path / "part")
    more = write_pseudo_labels(toy_run, out=tmp_path / "part", **(options | {"kinds": ("seed", "aux")}))
    assert made == [1, 2, 1] and more.miou["seed"] == whole.miou["seed"]  # a kind is added, the other read
    assert before.items() <= files_of(tmp_path / "part").items()


def test_a_damaged_label_is_named(toy_run, tmp_path):
    options = {"split": "val", "out": tmp_path, "kinds": ["seed"], "progress": False}
    write_pseudo_labels(toy_run, **options)
    (tmp_path / "seed/SegmentationClass/toy_val_000001.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"toy_val_000001.png: .*Delete it"):
        write_pseudo_labels(toy_run, **options)


# --- files of another data set ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", ["link", "copy"])
def test_labels_have_the_native_size_of_each_image(images, tmp_path):
    run = voc_run(tmp_path)
    root, sizes = tmp_path / "VOC2012", {"one": (40, 26), "two": (31, 57), "three": (31, 57)}
    rng = np.random.default_rng(0)
    for name, (width, height) in sizes.items():
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(root / f"JPEGImages/{name}.jpg")
        mask = np.zeros((height, width), np.uint8)
        mask[:, :20] = 3
        Image.fromarray(mask).save(root / f"SegmentationClass/{name}.png")
    done = write_pseudo_labels(run, out=tmp_path / "out", kinds=["seed", "refined"], images=images, progress=False)
    for kind in ("seed", "refined"):
        reader = open_dataset(as_folder(done, kind, "train"), "train")
        assert [reader.mask(index).shape[::-1] for index in range(3)] == list(sizes.values())
    picture = tmp_path / "out/JPEGImages/one.jpg"
    assert picture.read_bytes() == (root / "JPEGImages/one.jpg").read_bytes()
    assert picture.is_symlink() == (images == "link")
    with (tmp_path / "out/seed/labels.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["name", "labels"], *([name, "bird"] for name in sizes)]
    assert done.num_masks == 3
    again = write_pseudo_labels(run, out=tmp_path / "out", kinds=["seed"], images="copy", progress=False)
    assert not picture.is_symlink() and again.miou["seed"] == done.miou["seed"]


@pytest.mark.data
@pytest.mark.slow
@needs_samples
def test_real_photographs_score_the_same_when_read_back(tmp_path):
    cfg = Config.preset("voc_vit_b").replace(
        data_root=str(SAMPLES / "voc_sample"), crop_size=128, val_images=3, **(SMALL | {"eval_cam_size": 128})
    )
    run = make_run(cfg, tmp_path)
    done = write_pseudo_labels(
        run, split="val", out=tmp_path / "out", kinds=["seed", "refined"], images="link", progress=False
    )
    model, cfg = load_run_model(run)
    wanted = evaluate_model(model, cfg, targets=("cam", "cam_refined"), progress=False).scores
    samples = eval_samples(cfg, model.mean, model.std)
    assert len({sample.raw.shape for sample in samples}) > 1
    for kind in ("seed", "refined"):
        reader = open_dataset(as_folder(done, kind), "val")
        predictions = [reader.mask(index) for index in range(len(reader))]
        assert score(cfg, predictions, [sample.mask for sample in samples]) == wanted[TARGETS[kind]]


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command(toy_run, tmp_path, capsys):
    shutil.copytree(toy_run.path, tmp_path / "run")
    arguments = ["pseudo-labels", str(tmp_path / "run"), "--split", "val", "--kinds", "seed", "aux", "--uncertain"]
    assert main([*arguments, "--device", "cpu"]) == 0
    out = tmp_path / "run/pseudo_labels/val"
    printed = capsys.readouterr().out
    assert "3 images of val" in printed and "lattice star" in printed and str(out / "contact_sheet.png") in printed
    assert (out / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((out / "aux/protocol.json").read_text())
    assert (record["low_threshold"], record["high_threshold"]) == (0.25, 0.7)
    assert main([*arguments[:-1], "--thresholds", "0.4"]) == 2
    assert "low_threshold (0.25 there, 0.4 wanted)" in capsys.readouterr().err
    assert main([*arguments, "--thresholds", "0.4"]) == 2
    assert "--uncertain without --thresholds" in capsys.readouterr().err
    assert main(["pseudo_labels", str(tmp_path / "nowhere")]) == 2
    assert "no config.json" in capsys.readouterr().err
