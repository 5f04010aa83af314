"""The command `predict`: any images, a trained model, a folder of masks, CAMs and labels."""

from pathlib import Path
from typing import Any, Literal

import tyro

from toco_lab.words import counted


def predict(
    model: tyro.conf.Positional[Path],
    images: tyro.conf.Positional[tuple[str, ...]],
    out: Path = Path("predictions"),
    mask: Literal["auto", "seg", "cam", "cam_refined", "cam_aux"] = "auto",
    crf: bool = False,
    classes: tuple[str, ...] = (),
    label_threshold: float = 0.5,
    background_threshold: float | None = None,
    scales: tuple[float, ...] = (),
    flip: bool = True,
    longest_side: int | None = None,
    tiles: bool = False,
    scores: bool = False,
    boxes: bool = False,
    sheet: int = 60,
    batch_size: int = 8,
    device: str = "auto",
    preset: str | None = None,
    by: str | None = None,
) -> None:
    """Predict any images: masks, CAMs over the images, labels.csv, a contact sheet. No labels are needed.

    A stopped command continues when it is given again. Images that cannot be read are named at the end (code 2), the
    others are done.

    Args:
        model: Folder of a run, a checkpoint file, a file the authors released, or a sweep (its best run).
        images: Files, folders, or patterns like 'photos/*.jpg'.
        out: Folder to write.
        mask: seg (the decoder's), cam, cam_refined (by PAR) or cam_aux. auto takes seg where the run trained a decoder,
            else cam_refined.
        crf: Let the dense CRF follow (seg, cam).
        classes: Names of the classes that the images show; none given lets the classifier decide.
        label_threshold: A class is present if the classifier's score exceeds it, between 0 and 1.
        background_threshold: CAM score at or below this is background; None takes the run's. Not of seg.
        scales: Of CAMs and decoder; none given takes the run's.
        flip: Each scale also runs mirrored; without, half the time.
        longest_side: Images with a longer side are scaled down for the model (outputs keep their size); None takes
            twice the run's training crop, at most 1024; 0 never does.
        tiles: Cut images larger than the training crop into windows of its side that overlap by half, in place of
            scaling them down: for sides of thousands of pixels. Masks seg, cam, cam_aux.
        scores: Also write the CAMs as they are, float16 in one .npz per image.
        boxes: Also draw the boxes of the objects over the images, and write instances.json in COCO's format.
        sheet: Images of the contact sheet; 0 writes none.
        batch_size: Most images of one size that share a pass.
        device: auto, cpu, cuda ...
        preset: Of a released file: the preset it belongs to; None takes VOC's of 20 and COCO's of 80 classes.
        by: Of several runs: the score that decides; None takes cam_mIoU.
    """
    from toco_lab.prediction.folder import predict_folder
    from toco_lab.prediction.source import load

    if not images:
        raise ValueError("images are needed: files, folders, or patterns like 'photos/*.jpg'")
    loaded = load(model, device=device, preset=preset, by=by)
    print(f"model: {loaded.name}" + (f", {loaded.chosen}" if loaded.chosen else ""))
    options: dict[str, Any] = {
        "mask": mask, "crf": crf, "classes": classes, "label_threshold": label_threshold, "scales": scales,
        "flip": flip, "background_threshold": background_threshold, "longest_side": longest_side,
        "tiles": tiles,
    }  # fmt: skip
    recipe = loaded.recipe(**options)
    print(f"mask:  {recipe.mask}, {recipe.because}", flush=True)
    done = predict_folder(
        loaded, images, out, scores=scores, boxes=boxes, batch_size=batch_size, sheet=sheet, **options
    )
    print(done)
    if done.failed:
        there = done.made + done.kept
        lines = [reason if path in reason else f"{path}: {reason}" for path, reason in done.failed.items()]
        others = f"the other {counted(there, 'is', 'are')} done" if there else "none is done"
        raise ValueError("\n".join([f"{counted(len(lines), 'image')} could not be predicted, {others}:", *lines]))
