"""Large images in windows: against loops over windows, and against the whole image where one window holds it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from toco_lab.backbones.pixels import normalise
from toco_lab.commands.app import main
from toco_lab.data.toy import make_scene
from toco_lab.evaluation.prediction import multi_scale_segmentation
from toco_lab.method.cam import raw_cams
from toco_lab.prediction import tiles
from toco_lab.prediction.predictor import Predictor
from toco_lab.prediction.tiles import Tiled, strongest_above, tile_starts

HEIGHT, WIDTH, SIDE = 200, 150, 96


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    """A mosaic of scenes, (200, 150, 3): neither side is a multiple of the step."""
    scenes = [make_scene(5, index).image for index in range(6)]
    whole = np.concatenate([np.concatenate(scenes[row : row + 2], 1) for row in (0, 2, 4)], 0)
    return np.ascontiguousarray(whole[:HEIGHT, :WIDTH])


def pixels(model: Predictor, raw: np.ndarray) -> torch.Tensor:
    image = torch.from_numpy(np.ascontiguousarray(raw)).permute(2, 0, 1).contiguous()
    return normalise(image, model.model.mean, model.model.std)[None]


def windows() -> list[tuple[int, int]]:
    return [(top, left) for top in (0, 48, 96, 104) for left in (0, 48, 54)]


def averaged(model: Predictor, raw: np.ndarray, maps_of) -> torch.Tensor:
    """Window by window, pixel by pixel counted."""
    sums, counts = 0.0, torch.zeros(HEIGHT, WIDTH)
    with torch.no_grad():
        for top, left in windows():
            found = maps_of(pixels(model, raw[top : top + SIDE, left : left + SIDE]))
            whole = torch.zeros(*found.shape[:-2], HEIGHT, WIDTH)
            whole[..., top : top + SIDE, left : left + SIDE] = found
            sums, inside = sums + whole, torch.zeros(HEIGHT, WIDTH)
            inside[top : top + SIDE, left : left + SIDE] = 1
            counts += inside
    return sums / counts


def test_windows_overlap_by_half_and_end_at_the_edge():
    assert tile_starts(200, 96) == [0, 48, 96, 104] and tile_starts(150, 96) == [0, 48, 54]
    assert tile_starts(96, 96) == tile_starts(50, 96) == [0] and tile_starts(97, 96) == [0, 1]
    assert tile_starts(192, 96) == [0, 48, 96] and tile_starts(3, 1) == [0, 1, 2]
    for length in range(1, 300):
        starts = tile_starts(length, 64)
        seen = np.zeros(length, int)
        for start in starts:
            seen[start : start + 64] += 1
        assert seen.min() >= 1 and starts == sorted(set(starts)) and starts[-1] + min(64, length) == length


def test_segmentation_is_the_mean_of_the_windows_logits(model, large, monkeypatch):
    """The smallest network says background everywhere: each logit is taken relative to its mean over the image."""
    cfg, real = model.cfg.replace(eval_seg_scales=(1.0, 0.5)), multi_scale_segmentation
    wanted = averaged(model, large, lambda image: real(model.model, image, (1.0, 0.5), fusion=cfg.eval_fusion)[0])
    usual = wanted.mean((1, 2))[:, None, None]
    monkeypatch.setattr(tiles, "multi_scale_segmentation", lambda *args, **options: real(*args, **options) - usual)
    found, wanted = Tiled(model.model, cfg, large, SIDE).segmentation(), wanted - usual
    clear = (wanted.topk(2, dim=0).values.diff(dim=0).abs() > 1e-5)[0].numpy()
    assert clear.mean() > 0.98 and np.array_equal(found[clear], wanted.argmax(0).numpy()[clear])
    assert found.dtype == np.uint8 and len(np.unique(found)) > 2


@pytest.mark.parametrize("flip", [True, False])
def test_cams_are_averaged_before_they_are_stretched(model, large, flip):
    classes = [1, 4]

    def maps_of(image):
        total = 0.0
        for scale in (1.0, 0.5):
            straight, *mirrored = torch.nn.functional.interpolate(
                raw_cams(model.model, image, scale, flip=flip)[:, :, 0].flatten(0, 1), (SIDE, SIDE), mode="bilinear"
            ).unflatten(0, (2, -1)).unbind(1)  # fmt: skip
            both = torch.maximum(straight, mirrored[0].flip(-1)) if flip else straight
            total = total + both.relu()
        return total[:, classes]

    maps = averaged(model, large, maps_of)
    low, high = (getattr(maps, name)((-2, -1), keepdim=True) for name in ("amin", "amax"))
    wanted = (maps - low) / (high - low + 1e-5)
    for found, one in zip(Tiled(model.model, model.cfg, large, SIDE, flip=flip).cams(classes), wanted, strict=True):
        assert found.shape == (2, HEIGHT, WIDTH) and found.dtype == np.float32
        assert np.allclose(found, one.numpy(), atol=1e-4)


def test_a_class_is_there_if_one_window_shows_it(model, large):
    with torch.no_grad():
        logits = torch.cat([model.model(pixels(model, large[top : top + SIDE, left : left + SIDE])).logits
                            for top, left in windows()])  # fmt: skip
    found = model.predict(large, tiles=True)
    assert list(found.labels.values()) == pytest.approx(logits.amax(0).double().sigmoid().tolist(), abs=1e-5)
    assert found.present == tuple(
        name for name, logit in zip(model.class_names, logits.amax(0), strict=True) if logit > 0
    )
    assert found.mask.shape == (HEIGHT, WIDTH) and found.protocol["longest_side"] == 0
    assert found.protocol["tiles"] == {
        "side": 96, "step": 48,
        "fused": "mean over windows; CAMs before their normalisation, image logits by their maximum",
    }  # fmt: skip


@pytest.mark.parametrize("mask", ["seg", "cam", "cam_aux"])
@pytest.mark.parametrize("shape", [(96, 96), (60, 96)])
def test_an_image_that_one_window_holds_is_predicted_as_without_tiles(model, samples, mask, shape):
    raw = np.ascontiguousarray(samples[0].raw[: shape[0], : shape[1]])
    options = {"mask": mask, "classes": list(model.class_names[:3])}
    whole, tiled = model.predict(raw, **options), model.predict(raw, tiles=True, **options)
    assert np.allclose(whole.cams, tiled.cams, atol=1e-5) and np.allclose(whole.cams_aux, tiled.cams_aux, atol=1e-5)
    assert (whole.mask == tiled.mask).mean() > 0.999 and whole.labels == pytest.approx(tiled.labels, abs=1e-6)
    assert "tiles" not in whole.protocol


def test_every_class_of_one_row_of_windows_is_all_that_is_held(model):
    """However high an image is, no part that is averaged has more rows than a window, and they follow each other."""
    raw = np.zeros((500, 100, 3), np.uint8)
    tiled = Tiled(model.model, model.cfg, raw, SIDE)
    batches, next_row = [], 0

    def maps_of(image):
        batches.append(len(image))
        return image[:, :1] * 0 + len(batches)

    for top, rows in tiled._averaged(maps_of):
        assert top == next_row and rows.shape[0] == 1 and rows.shape[1] <= SIDE and rows.shape[2] == 100
        next_row += rows.shape[1]
    assert next_row == 500 and max(batches) == 2  # two windows a row


def test_the_strongest_class_above_the_threshold_by_hand():
    maps = np.array([[[0.2, 0.6]], [[0.4, 0.5]]], np.float32)
    assert strongest_above(maps, [2, 5], 0.3).tolist() == [[6, 3]]
    assert strongest_above(maps, [2, 5], 0.4).tolist() == [[0, 3]]
    assert not strongest_above(maps[:0], [], 0.0).any() and strongest_above(maps[:0], [], 0.0).shape == (1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "cam_refined"}, "mask 'cam_refined' compares pixels of the whole image, which tiles never hold"),
        ({"crf": True}, "crf compares pixels of the whole image"),
        ({"longest_side": 500}, "longest_side 500 has no effect with tiles"),
        ({"tiles": 96}, "tiles must be True or False, got 96"),
    ],
)
def test_what_needs_the_whole_image_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.predict_many([], **{"tiles": True} | options)


def test_without_a_decoder_tiles_take_the_cam_as_it_is(model):
    plain = Predictor(model.model, model.cfg.replace(w_seg=0.0))
    assert plain.recipe(tiles=True).mask == "cam" and plain.recipe().mask == "cam_refined"


def test_the_command_predicts_in_tiles_and_its_protocol_says_so(smoke_run, large, tmp_path, capsys):
    (tmp_path / "slides").mkdir()
    for name in ("a", "b"):
        Image.fromarray(large).save(tmp_path / f"slides/{name}.png")
    words = ["predict", str(smoke_run.path), str(tmp_path / "slides"), "--device", "cpu", "--sheet", "0", "--tiles"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out/protocol.json").read_text())["tiles"]["side"] == 96
    masks = sorted((tmp_path / "out").rglob("a*.png"))
    assert any(Image.open(path).size == (WIDTH, HEIGHT) for path in masks)
    assert main([*words[:-1], "--out", str(tmp_path / "out")]) == 2  # another protocol
    assert "tiles" in capsys.readouterr().err
