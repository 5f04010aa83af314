"""The command `video`: masks of a clip, of CAMs averaged over time; without a clip, what that gains on toy clips."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

if TYPE_CHECKING:
    from toco_lab.evaluation.clip_scores import ClipEvaluation
    from toco_lab.runs.run_dir import RunDir


def video(
    run: tyro.conf.Positional[Path],
    frames: tyro.conf.Positional[Path | None] = None,
    out: Path = Path("video"),
    window: int = 2,
    mask: Literal["auto", "cam", "cam_refined", "cam_aux"] = "auto",
    crf: bool = False,
    classes: tuple[str, ...] = (),
    label_threshold: float = 0.5,
    background_threshold: float | None = None,
    scales: tuple[float, ...] = (),
    flip: bool = True,
    longest_side: int | None = None,
    animation: Literal["gif", "mp4", "none"] = "gif",
    clips: int = 20,
    clip_frames: int = 8,
    threshold: Literal["tuned", "configured"] = "tuned",
    device: str = "auto",
) -> None:
    """Predict a clip, each frame's CAMs averaged with those of its neighbours along the optical flow.

    Without FRAMES a run of toy scenes is measured on toy clips, whose motion is known: each frame alone, averaged
    without warping, along estimated flow, and along the true one. Writes video.csv, video.json and figures/video.gif
    and .png into the run's folder. `docs/video.md` says what the numbers say.

    Args:
        run: Folder of a run; with FRAMES also a checkpoint file or a sweep (its best run).
        frames: A folder of images of one size, in the order of their names, or a video file (needs the extra `video`).
        out: Folder to write masks, overlays and animation of FRAMES.
        window: Frames before and after each one that it is averaged with; 0 predicts each frame alone.
        mask: Of FRAMES: cam, cam_refined (by PAR) or cam_aux. auto takes cam_refined.
        crf: Of FRAMES: let the dense CRF follow (cam).
        classes: Names of the classes that FRAMES show; none given lets the classifier decide, by the mean over frames.
        label_threshold: A class is present if the classifier's score of the clip exceeds it, between 0 and 1.
        background_threshold: Of FRAMES: CAM score at or below this is background; None takes the run's.
        scales: Of FRAMES: scales of the CAMs; none given takes the run's.
        flip: Of FRAMES: each scale also runs mirrored.
        longest_side: Frames with a longer side are scaled down for the model; None takes twice the run's training crop,
            at most 1024; 0 never does.
        animation: Of FRAMES: gif, mp4 (needs the extra `video`) or none.
        clips: How many toy clips are measured.
        clip_frames: Frames of a toy clip.
        threshold: Of the CAMs of toy clips: tuned is best for the mIoU of training images, configured the config's.
        device: auto, cpu, cuda ...
    """
    if frames is None:
        from toco_lab.evaluation.clip_scores import clips_of_run
        from toco_lab.runs.run_dir import RunDir

        found = RunDir(run)
        measured = clips_of_run(
            found, clips=clips, frames=clip_frames, window=window, threshold=threshold, device=device
        )
        print(f"\n{measured}")
        for path in show_clip(found, measured):
            print(path)
        return
    from toco_lab.prediction.source import load
    from toco_lab.prediction.video import predict_video

    loaded = load(run, device=device)
    print(f"model: {loaded.name}" + (f", {loaded.chosen}" if loaded.chosen else ""), flush=True)
    options: dict[str, Any] = {
        "mask": mask, "crf": crf, "classes": classes, "label_threshold": label_threshold, "scales": scales,
        "flip": flip, "background_threshold": background_threshold, "longest_side": longest_side,
    }  # fmt: skip
    print(predict_video(loaded, frames, out, window=window, animation=animation, **options))


def show_clip(run: "RunDir", measured: "ClipEvaluation") -> list[Path]:
    """Write figures/video.gif and figures/video.png of the first clip into a run's folder; returns the two files.

    The animation has the frame, its truth and its labels by each fusion beside each other; the strip has them below
    each other, frame by frame.
    """
    from toco_lab.data.classes import PALETTE
    from toco_lab.figures.moving import beside, clip_rows, enlarged, gif_bytes, png_bytes, strip
    from toco_lab.files import atomic_write

    rows = clip_rows(measured.clip.image, {"truth": measured.clip.mask, **measured.labels}, PALETTE)
    moving = (enlarged(beside(pictures), 2) for pictures in zip(*rows.values(), strict=True))
    files = {"video.gif": gif_bytes(moving), "video.png": png_bytes(strip(rows))}
    for name, data in files.items():
        with atomic_write(run.path / "figures" / name) as file:
            file.write(data)
    return [run.path / "figures" / name for name in files]
