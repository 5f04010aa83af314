"""Clips of images and videos: what is read and written, and masks against those of all frames held at once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from toco_lab.data.classes import DataError
from toco_lab.data.toy_clips import make_clip
from toco_lab.evaluation.over_time import fuse_over_time
from toco_lab.method.flow import EstimatedMotion
from toco_lab.prediction.frames import mp4_bytes, open_frames
from toco_lab.prediction.predictor import Predictor
from toco_lab.prediction.video import predict_video

TOLD = {"classes": ["striped disc", "wavy clover"]}


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A folder of eleven frames of a toy clip, named f_0 to f_10."""
    (tmp_path / "clip").mkdir()
    for number, image in enumerate(make_clip(1, 0, frames=11).image):
        Image.fromarray(image).save(tmp_path / "clip" / f"f_{number}.png")
    return tmp_path / "clip"


def masks(out: Path) -> list[np.ndarray]:
    return [np.array(Image.open(out / "masks" / f"f_{number}.png")) for number in range(11)]


def test_frames_come_in_the_order_of_their_numbers(clip: Path) -> None:
    frames = open_frames(clip)
    assert frames.count == 11 and [name for name, _ in frames] == [f"f_{number}" for number in range(11)]
    assert all(np.array_equal(raw, image) for (_, raw), image in zip(frames, make_clip(1, 0, 11).image, strict=True))


def test_a_window_of_nothing_is_each_frame_alone(model: Predictor, clip: Path, tmp_path: Path) -> None:
    made = predict_video(model, clip, tmp_path / "out", window=0, mask="cam", progress=False, **TOLD)
    assert made.present == ("striped disc", "wavy clover") and made.scores == {}
    images = [clip / f"{name}.png" for name in made.names]
    for name, one in zip(made.names, model.predict_many(images, mask="cam", **TOLD), strict=True):
        assert one.name == name
        assert (np.array(Image.open(tmp_path / "out" / "masks" / f"{name}.png")) == one.mask).mean() > 0.999


def test_masks_are_of_the_cams_fused_over_the_whole_clip(model: Predictor, clip: Path, tmp_path: Path) -> None:
    """Frames come and go in groups of eight; the masks are those of all frames held at once."""
    out = tmp_path / "out"
    predict_video(model, clip, out, mask="cam", background_threshold=0.4, progress=False, **TOLD)
    images = [clip / f"f_{number}.png" for number in range(11)]
    alone = list(model.predict_many(images, mask="cam", **TOLD))
    frames = torch.stack([torch.from_numpy(one.image) for one in alone]).permute(0, 3, 1, 2).float()
    fused = fuse_over_time(torch.from_numpy(np.stack([one.cams for one in alone])), EstimatedMotion(frames))
    score, place = fused.max(1)
    label = torch.tensor([1, 5])[place].where(score > 0.4, 0).numpy()
    agree = [(mask == one).mean() for mask, one in zip(masks(out), label, strict=True)]
    assert min(agree) > 0.995
    assert len({path.name for path in (out / "overlays").iterdir()}) == 11
    with Image.open(out / "animation.gif") as moving:
        assert moving.size == (96, 96) and 1 < moving.n_frames <= 11
    with Image.open(out / "strip.png") as strip:
        assert strip.size[0] == 8 * 96 + 7 * 4
    assert (out / "classes.txt").read_text().splitlines() == list(model.class_names)
    record = json.loads((out / "protocol.json").read_text())
    assert record["over_time"]["window"] == 2 and record["mask"] == "cam" and record["told_classes"] == TOLD["classes"]
    before = masks(out)
    predict_video(model, clip, out, mask="cam", background_threshold=0.4, progress=False, **TOLD)  # over its own files
    assert all(np.array_equal(*both) for both in zip(before, masks(out), strict=True))
    with pytest.raises(ValueError, match="window"):  # another protocol
        predict_video(model, clip, out, mask="cam", background_threshold=0.4, window=1, progress=False, **TOLD)


def test_the_classes_of_a_clip_are_those_of_its_mean_logit(model: Predictor, clip: Path, tmp_path: Path) -> None:
    scores = [one.labels for one in model.predict_many(sorted(clip.iterdir()), mask="cam")]
    logits = np.mean([[np.log(s / (1 - s)) for s in one.values()] for one in scores], axis=0)
    threshold = float(1 / (1 + np.exp(-np.sort(logits)[-2:].mean())))  # between the two highest
    made = predict_video(
        model, clip, tmp_path / "out", mask="cam", label_threshold=threshold, window=0, animation="none", progress=False
    )
    assert made.present == (model.class_names[int(logits.argmax())],)
    assert [made.scores[name] for name in model.class_names] == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-5)
    assert not (tmp_path / "out" / "animation.gif").exists()
    assert set(np.unique(np.stack(masks(tmp_path / "out")))) <= {0, int(logits.argmax()) + 1}


def test_a_clip_without_a_class_is_background_and_says_so(model: Predictor, clip: Path, tmp_path: Path) -> None:
    made = predict_video(
        model, clip, tmp_path / "out", label_threshold=0.999, window=0, animation="none", progress=False
    )
    assert made.present == () and "a lower --label-threshold finds more" in str(made)
    assert not np.stack(masks(tmp_path / "out")).any()


def test_what_is_no_clip_is_named(model: Predictor, clip: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / "inner").mkdir(parents=True)
    with pytest.raises(DataError, match=r"empty has no frames: .* is expected; it has folders \(inner\)"):
        predict_video(model, empty, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no frames at nowhere: give a folder of images or a video file"):
        predict_video(model, "nowhere", tmp_path / "out")
    with pytest.raises(DataError, match=r"f_0\.png is a single image: give the folder of its clip, or take `predict`"):
        predict_video(model, clip / "f_0.png", tmp_path / "out")
    Image.new("RGB", (80, 96)).save(clip / "f_11.png")
    with pytest.raises(DataError, match=r"f_11.png has 80 x 96 pixels, and f_0.png 96 x 96: frames of a clip have one"):
        predict_video(model, clip, tmp_path / "out")
    (clip / "f_11.png").unlink()
    Image.new("RGB", (96, 96)).save(clip / "f_10.jpg")
    with pytest.raises(DataError, match=r"f_10\.png and f_10\.jpg would have one mask: rename one of them"):
        predict_video(model, clip, tmp_path / "out")
    for number in range(3):
        Image.new("RGB", (96, 4)).save(empty / f"{number}.png")
    with pytest.raises(DataError, match=r"0 of .*empty has 96 x 4 pixels: a side is shorter than a patch of 8"):
        predict_video(model, empty, tmp_path / "out", progress=False)
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {".work.lock"}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"mask": "seg"}, "mask 'seg' is the decoder's, and CAMs are fused over time"), ({"tiles": True}, "tiles have no"),
     ({"window": -1}, "window must be at least 0 frames, got -1"),
     ({"animation": "avi"}, "animation must be one of gif, mp4, none, got 'avi'"),
     ({"classes": ["cat"]}, "unknown class 'cat'"), ({"masks": "cam"}, "unknown option 'masks', did you mean 'mask'")],
)  # fmt: skip
def test_wrong_options_are_named_before_anything_is_written(model, clip, tmp_path, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        predict_video(model, clip, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_video_without_the_package_names_the_extra(model, clip, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("toco_lab.prediction.frames.find_spec", lambda name: None)
    (tmp_path / "a.mp4").write_bytes(b"no video")
    needs = r"by the package av \(PyAV\); install it with: pip install 'toco_lab\[video\]'"
    with pytest.raises(ValueError, match=f"a.mp4 is read {needs}"):
        predict_video(model, tmp_path / "a.mp4", tmp_path / "out")
    with pytest.raises(ValueError, match=f"an mp4 is written {needs}"):
        predict_video(model, clip, tmp_path / "out", animation="mp4")


def test_a_video_is_read_and_written_by_pyav(model: Predictor, tmp_path: Path) -> None:
    pytest.importorskip("av")
    images = make_clip(1, 0, frames=9).image
    (tmp_path / "a.mp4").write_bytes(mp4_bytes(images, rate=12))
    frames = open_frames(tmp_path / "a.mp4")
    assert frames.rate == 12 and [name for name, _ in frames][:2] == ["frame_000001", "frame_000002"]
    for (_, raw), image in zip(frames, images, strict=True):
        assert abs(raw.astype(int) - image).mean() < 20  # it is compressed
    made = predict_video(model, tmp_path / "a.mp4", tmp_path / "out", animation="mp4", progress=False, **TOLD)
    assert len(made.names) == 9 and sum(1 for _ in open_frames(tmp_path / "out" / "animation.mp4")) == 9
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"bad.mp4 cannot be read as a video .* give a folder of images"):
        open_frames(tmp_path / "bad.mp4")
