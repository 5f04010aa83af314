"""Views: the colours of the test image are its own coordinates, so geometry can be read back from the pixels."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch

from toco_lab.backbones.pixels import denormalise, normalise
from toco_lab.config import Config
from toco_lab.data.classes import PALETTE
from toco_lab.data.colours import ColourDraws
from toco_lab.data.views import (
    NO_TURN,
    TrainViews,
    Turn,
    ViewDraws,
    apply_to_mask,
    apply_to_motion,
    apply_views,
    draw_views,
)
from toco_lab.method.flow import in_image, warp

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = {
    "jitter_probability": 0.0, "grey_probability": 0.0, "blur_probability": (0.0, 0.0, 0.0),
    "solarise_probability": 0.0, "scale_range": (1.0, 1.0), "crop_size": 96, "view2_size": 64, "flip_probability": 0.5,
}  # fmt: skip
COLOURFUL = {"jitter_probability": 0.8, "grey_probability": 0.2, "blur_probability": (1.0, 0.1, 0.5)}
PHOTO_LEVELS = [
    [104.068, 128.005, 136.283],
    [123.902, 49.333, 112.962],
    [84.39, 63.953, 123.367],
    [114.107, 98.653, 107.65],
    [103.277, 101.667, 137.239],
    [141.522, 57.699, 97.05],
]
PHOTO_BOXES = [
    [0, 112, 0, 112],
    [0, 112, 0, 112],
    [0, 112, 0, 112],
    [39, 85, 19, 85],
    [0, 112, 0, 112],
    [0, 112, 0, 112],
]
BLUE = 200  # marks image pixels; padding has the mean colour, 103.53


def config(**changes) -> Config:
    return Config.preset("smoke").replace(**(PLAIN | changes))


def coordinates(height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3): red is the row, green the column, blue constant."""
    image = np.full((height, width, 3), BLUE, np.uint8)
    image[..., 0], image[..., 1] = np.mgrid[:height, :width]
    return image


def grey_levels(view: torch.Tensor) -> torch.Tensor:
    return denormalise(view, MEAN, STD).round().int()


def content_box(view: torch.Tensor) -> list[int]:
    """Bounding box of the image pixels in a view."""
    rows, columns = torch.where(grey_levels(view)[2] == BLUE)
    return [rows.min().item(), rows.max().item() + 1, columns.min().item(), columns.max().item() + 1]


def mirrored(box: list[int], width: int = 96) -> list[int]:
    return [box[0], box[1], width - box[3], width - box[2]]


def is_flipped(view: torch.Tensor) -> bool:
    top, _, left, _ = content_box(view)
    green = grey_levels(view)[1]
    return bool(green[top, left + 1] < green[top, left])


def test_normalise_numbers():
    image = torch.tensor([124, 116, 104], dtype=torch.uint8).reshape(3, 1, 1)
    expected = [(124 - 123.675) / 58.395, (116 - 116.28) / 57.12, (104 - 103.53) / 57.375]
    assert normalise(image, MEAN, STD).flatten().tolist() == pytest.approx(expected, rel=1e-4)


def test_denormalise_inverts_normalise_and_leaves_its_input_alone():
    image = torch.rand(2, 3, 5, 7) * 255
    before = image.clone()
    torch.testing.assert_close(denormalise(normalise(image, MEAN, STD), MEAN, STD), before, atol=1e-4, rtol=0)
    assert torch.equal(image, before)


@pytest.mark.parametrize("seed", range(12))
def test_valid_box_is_where_the_image_is(seed):
    views = TrainViews(config(), MEAN, STD)(coordinates(60, 80), seed)
    box = views.valid_box.tolist()
    assert views.valid_box.dtype == torch.int64
    assert (box[1] - box[0], box[3] - box[2]) == (60, 80)
    assert content_box(views.image) == box
    inside = torch.zeros(96, 96, dtype=torch.bool)
    inside[box[0] : box[1], box[2] : box[3]] = True
    assert (views.image[:, ~inside] == 0).all()  # padding is exactly 0 after normalisation
    pixels = torch.from_numpy(coordinates(60, 80)).permute(2, 0, 1).int()
    pixels = pixels.flip(-1) if is_flipped(views.image) else pixels
    assert torch.equal(grey_levels(views.image)[:, inside].reshape(3, 60, 80), pixels)


def test_placement_is_random_and_both_flips_occur():
    views = [TrainViews(config(), MEAN, STD)(coordinates(60, 80), seed) for seed in range(60)]
    tops, lefts = ({view.valid_box[k].item() for view in views} for k in (0, 2))
    assert len(tops) > 20 and min(tops) <= 2 and max(tops) >= 34  # all of 0..36 may occur
    assert len(lefts) > 10 and min(lefts) <= 1 and max(lefts) >= 15
    assert 15 < sum(is_flipped(view.image) for view in views) < 45


def test_crop_of_a_larger_image_is_one_window_of_it():
    views = TrainViews(config(flip_probability=0.0), MEAN, STD)(coordinates(150, 200), 3)
    red, green, blue = grey_levels(views.image)
    assert views.valid_box.tolist() == [0, 96, 0, 96] and (blue == BLUE).all()
    assert torch.equal(red, red[0, 0] + torch.arange(96, dtype=torch.int32)[:, None].expand(96, 96))
    assert torch.equal(green, green[0, 0] + torch.arange(96, dtype=torch.int32).expand(96, 96))


@pytest.mark.parametrize(("scale", "size"), [(0.5, (30, 40)), (1.25, (75, 96))])
def test_scale_sets_the_size_of_the_box(scale, size):
    views = TrainViews(config(scale_range=(scale, scale)), MEAN, STD)(coordinates(60, 80), 0)
    top, bottom, left, right = views.valid_box
    assert (bottom - top, right - left) == size


@pytest.mark.parametrize("colours", [{}, COLOURFUL])
@pytest.mark.parametrize("seed", range(8))
def test_sound_views_share_their_geometry(seed, colours):
    views = TrainViews(config(**colours), MEAN, STD)(coordinates(60, 80), seed)
    padding = [(view == 0).all(0) for view in (views.image, views.local_source)]
    assert torch.equal(*padding)
    if not colours:
        assert torch.equal(views.image, views.local_source)


def test_local_source_has_colours_of_its_own():
    views = TrainViews(config(**COLOURFUL), MEAN, STD)(coordinates(96, 96), 0)
    assert not torch.allclose(views.image, views.local_source, atol=0.05)


def test_quirk_flips_misalign_half_of_the_local_views():
    sound, quirk = TrainViews(config(), MEAN, STD), TrainViews(config(flip_views_independently=True), MEAN, STD)
    apart = 0
    for seed in range(60):
        expected, views = sound(coordinates(60, 80), seed), quirk(coordinates(60, 80), seed)
        assert torch.equal(views.image, expected.image)  # the ablation is paired: nothing else changes
        assert torch.equal(views.view2, expected.view2)
        flipped = is_flipped(views.image) != is_flipped(views.local_source)
        apart += flipped
        assert torch.equal(views.local_source.flip(-1) if flipped else views.local_source, views.image)
    assert 15 < apart < 45


def test_quirk_box_stays_behind_when_the_image_flips():
    views = TrainViews(config(flip_valid_box=False), MEAN, STD)
    boxes = []
    for seed in range(20):
        view = views(coordinates(60, 80), seed)
        box, seen = view.valid_box.tolist(), content_box(view.image)
        assert seen == (mirrored(box) if is_flipped(view.image) else box)
        boxes.append(seen == box)
    assert not all(boxes)


@pytest.mark.parametrize("seed", range(6))
def test_view2_is_a_window_of_the_original_image(seed):
    """Rows grow downwards and columns to the right (or left), over 0.4 to 1 of the area."""
    views = TrainViews(config(), MEAN, STD)(coordinates(120, 160), seed)
    red, green, blue = denormalise(views.view2, MEAN, STD)
    assert red.shape == (64, 64) and (blue.round() == BLUE).all()
    height, width = (red[-1] - red[0]).mean().item() * 64 / 63, (green[:, -1] - green[:, 0]).mean().item() * 64 / 63
    assert 0.38 < height * abs(width) / (120 * 160) < 1.02
    assert height > 0
    assert views.view2.is_contiguous()


def test_view2_flips_on_its_own():
    views = [TrainViews(config(), MEAN, STD)(coordinates(120, 160), seed) for seed in range(40)]
    pairs = {(is_flipped(view.image), bool(view.view2[1, 0, -1] < view.view2[1, 0, 0])) for view in views}
    assert len(pairs) == 4


@pytest.mark.parametrize("extra", [{}, COLOURFUL | {"solarise_probability": 0.2}])
def test_views_depend_on_the_seed_alone(extra):
    make, image = TrainViews(config(**extra, scale_range=(0.5, 2.0)), MEAN, STD), coordinates(60, 80)
    first = make(image, 7)
    torch.rand(5)  # the caller's own draws
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    again, other = make(image, 7), make(image, 8)
    for name in ("image", "view2", "local_source", "valid_box"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert not torch.equal(first.view2, other.view2)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers were used"
    assert torch.get_num_threads() == threads
    assert np.array_equal(image, coordinates(60, 80))


def test_solarise_inverts_bright_pixels_of_view2_only():
    dark, bright = (
        TrainViews(config(solarise_probability=p, flip_probability=0.0), MEAN, STD)(coordinates(96, 96), 0)
        for p in (0.0, 1.0)
    )
    assert torch.equal(dark.image, bright.image)
    assert set(grey_levels(dark.view2)[2].flatten().tolist()) == {BLUE}
    assert set(grey_levels(bright.view2)[2].flatten().tolist()) == {255 - BLUE}


@pytest.mark.parametrize("seed", range(4))
def test_grey_views_have_equal_channels(seed):
    views = TrainViews(config(grey_probability=1.0), MEAN, STD)(coordinates(96, 96), seed)
    for view in (views.image, views.view2, views.local_source):
        red, green, blue = denormalise(view, MEAN, STD)
        torch.testing.assert_close(red, green, atol=1e-3, rtol=0)
        torch.testing.assert_close(red, blue, atol=1e-3, rtol=0)


def test_released_padding_is_black():
    views = TrainViews(config(padding="black"), MEAN, STD)(coordinates(60, 80), 0)
    sound = TrainViews(config(), MEAN, STD)(coordinates(60, 80), 0)
    box = views.valid_box.tolist()
    inside = torch.zeros(96, 96, dtype=torch.bool)
    inside[box[0] : box[1], box[2] : box[3]] = True
    assert torch.equal(views.image[:, inside], sound.image[:, inside])
    assert denormalise(views.image, MEAN, STD)[:, ~inside].abs().max() < 1e-4


# --- draws and what they say ------------------------------------------------------------------------------------------


def test_views_of_the_toy_preset_are_those_of_older_runs():
    """Recorded before drawing and applying were parted: a run that is continued sees the same views."""
    make, found = TrainViews(Config.preset("toy"), MEAN, STD), hashlib.sha256()
    for seed in range(8):
        views = make(coordinates(96, 96), seed)
        for view in (views.image, views.view2, views.local_source):
            found.update(grey_levels(view).numpy().astype(np.uint8).tobytes())
        found.update(views.valid_box.numpy().astype("<i8").tobytes())
    assert found.hexdigest() == "d616ac91aaf338c9ec705879f5e2c6517d93dfb3f98f2080ca17c9a489ba6e2c"


def test_views_of_photographs_are_those_of_older_runs():
    """Mean grey level of the three views and the box, recorded before drawing and applying were parted."""
    cfg = Config.preset("voc_vit_b").replace(crop_size=112, local_crop_size=32, view2_size=64)
    views = [TrainViews(cfg, MEAN, STD)(coordinates(90, 130), seed) for seed in range(6)]
    levels = [
        [denormalise(view, MEAN, STD).mean().item() for view in (each.image, each.view2, each.local_source)]
        for each in views
    ]
    np.testing.assert_allclose(levels, PHOTO_LEVELS, atol=2e-3)
    assert [each.valid_box.tolist() for each in views] == PHOTO_BOXES


def test_the_same_draws_give_the_same_views():
    cfg, image = config(**COLOURFUL, scale_range=(0.5, 2.0)), coordinates(60, 80)
    for seed in range(6):
        draws = draw_views(cfg, image.shape[:2], seed)
        found, expected = apply_views(cfg, image, draws, MEAN, STD), TrainViews(cfg, MEAN, STD)(image, seed)
        assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in vars(found))
        assert draws == draw_views(cfg, (60, 80), seed) != draw_views(cfg, (60, 80), seed + 1)


def test_quirks_and_padding_change_no_draw():
    cfg = config(**COLOURFUL, scale_range=(0.5, 2.0))
    for seed in range(6):
        assert draw_views(cfg.released(), (60, 80), seed) == draw_views(cfg, (60, 80), seed)


def test_draws_say_where_the_crop_lies():
    """Half of the image is cut off on the left, and padding lies below: read back from the pixels."""
    draws = ViewDraws(scaled=(60, 120), pad=(10, 0), start=(0, 24), view2_box=(5, 30, 20, 40))
    views = apply_views(config(), coordinates(60, 120), draws, MEAN, STD)
    assert views.valid_box.tolist() == content_box(views.image) == [10, 70, 0, 96]
    assert grey_levels(views.image)[1, 10].tolist() == list(range(24, 120))
    assert grey_levels(views.image)[0, 10:70, 0].tolist() == list(range(60))
    rows, columns = grey_levels(views.view2)[0, :, 0], grey_levels(views.view2)[1, 0]
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 24, 30, 69)
    mirrored_first = apply_views(config(), coordinates(60, 120), dataclasses.replace(draws, mirror=True), MEAN, STD)
    assert grey_levels(mirrored_first.image)[1, 10].tolist() == list(range(95, -1, -1))
    assert mirrored_first.valid_box.tolist() == [10, 70, 0, 96]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": (0, 200)}, r"a crop of 96 pixels at \(0, 200\) shows nothing of an image of \(60, 120\)"),
        ({"pad": (-1, 0)}, "must not be negative"),
        ({"view2_box": (50, 0, 20, 10)}, r"view2_box .*\(50, 0, 20, 10\) does not lie in an image of 60 x 120"),
        ({"view2_box": (0, 0, 0, 10)}, "does not lie in"),
    ],
)
def test_draws_of_another_image_are_refused(change, message):
    draws = ViewDraws(scaled=(60, 120), pad=(10, 0), start=(0, 24), view2_box=(5, 30, 20, 40))
    with pytest.raises(ValueError, match=message):
        apply_views(config(), coordinates(60, 120), dataclasses.replace(draws, **change), MEAN, STD)


def test_view2_has_the_side_of_the_crop_unless_a_size_is_given():
    for size, side in ((None, 96), (64, 64)):
        cfg = config(view2_size=size)
        assert cfg.view2_side == side
        assert TrainViews(cfg, MEAN, STD)(coordinates(60, 80), 0).view2.shape == (3, side, side)
    assert Config.preset("voc_vit_b").view2_side == Config.preset("coco_deit_b").released().view2_side == 448


@pytest.mark.parametrize("padding", ["mean", "black"])
def test_released_colours_act_on_padding_as_well(padding):
    """Contrast 0 is the mean grey of what it acts on: of the image alone, or of the image and its padding."""
    image, flat = np.full((40, 96, 3), 200, np.uint8), ColourDraws((("contrast", 0.0),))
    draws = ViewDraws(scaled=(40, 96), pad=(0, 0), start=(0, 0), view2_box=(0, 0, 40, 96), colours=flat)
    levels = {}
    for colours_on in ("image", "padded_crop"):
        cfg = config(padding=padding, colours_on=colours_on)
        levels[colours_on] = denormalise(apply_views(cfg, image, draws, MEAN, STD).image, MEAN, STD)
    outside = 0.0 if padding == "black" else torch.tensor([123.675, 116.28, 103.53])[:, None, None].expand(3, 56, 96)
    torch.testing.assert_close(levels["image"][:, :40], torch.full((3, 40, 96), 200.0), atol=0.05, rtol=0)
    torch.testing.assert_close(levels["image"][:, 40:], outside + torch.zeros(3, 56, 96), atol=0.05, rtol=0)
    grey = (0 if padding == "black" else 117) * 56 / 96 + 200 * 40 / 96
    torch.testing.assert_close(levels["padded_crop"], torch.full((3, 96, 96), grey), atol=0.7, rtol=0)


def test_released_blur_draws_padding_into_the_image():
    draws = ViewDraws((40, 96), (0, 0), (0, 0), (0, 0, 40, 96), colours=ColourDraws(blur=1.5))
    image = np.full((40, 96, 3), 200, np.uint8)
    last = {}
    for colours_on in ("image", "padded_crop"):
        cfg = config(padding="black", colours_on=colours_on)
        last[colours_on] = grey_levels(apply_views(cfg, image, draws, MEAN, STD).image)[0, 39, 50].item()
    assert last["image"] == 200 and 100 < last["padded_crop"] < 150


# --- masks ------------------------------------------------------------------------------------------------------------


def painted(height: int, width: int, cell: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A mask of cells of random classes, and an image in which every pixel has the colour of its label."""
    numbers = np.random.default_rng(0).integers(0, 21, (-(-height // cell), -(-width // cell)), dtype=np.uint8)
    mask = numbers.repeat(cell, 0).repeat(cell, 1)[:height, :width]
    return mask, PALETTE[mask]


@pytest.mark.parametrize("size", [(60, 80), (150, 200), (40, 130)])
@pytest.mark.parametrize("seed", range(8))
def test_a_mask_is_cut_padded_and_flipped_as_its_image(seed: int, size: tuple[int, int]) -> None:
    """At its own size, every pixel of the view has the colour of its label, and padding, and nothing else, is 255."""
    mask, image = painted(*size)
    make = TrainViews(config(), MEAN, STD)
    views, label = make(image, seed), make.mask(mask, seed)
    assert label.dtype == torch.int64 and label.shape == (96, 96)
    padding = (views.image == 0).all(0)
    assert torch.equal(label == 255, padding)
    shown = grey_levels(views.image).permute(1, 2, 0)[~padding]
    assert torch.equal(shown, torch.from_numpy(PALETTE).int()[label[~padding]])


@pytest.mark.parametrize("scale", [0.5, 0.77, 1.3, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_scaled_mask_lies_on_its_scaled_image(seed: int, scale: float) -> None:
    """Inside the cells, where no two colours mix, the picture still has the colour of its label; no label is new."""
    mask, image = painted(60, 80, cell=20)
    make = TrainViews(config(scale_range=(scale, scale)), MEAN, STD)
    view, label = grey_levels(make(image, seed).image).permute(1, 2, 0), make.mask(mask, seed)
    windows = label.float()[None, None]
    largest, smallest = (torch.nn.functional.max_pool2d(s * windows, 5, 1, 2)[0, 0] * s for s in (1, -1))
    inner = (largest == smallest) & (label != 255)
    assert inner.sum() > 300 and set(label.unique().tolist()) <= {*mask.ravel().tolist(), 255}
    assert (view[inner] - torch.from_numpy(PALETTE).int()[label[inner]]).abs().max() <= 1


def test_a_mask_of_given_draws_is_scaled_to_the_nearest_pixel() -> None:
    """Twice the size: every label becomes a block of four; mirrored before or after the crop it is the mirror image."""
    mask = np.arange(16, dtype=np.uint8).reshape(4, 4)
    cfg = config(crop_size=16, local_crop_size=8)
    draws = ViewDraws(scaled=(8, 8), pad=(3, 8), start=(0, 0), view2_box=(0, 0, 4, 4))
    label = apply_to_mask(cfg, mask, draws)
    block = torch.from_numpy(mask.repeat(2, 0).repeat(2, 1)).long()
    assert torch.equal(label[3:11, 8:], block) and (label == 255).sum() == 16 * 16 - 64
    assert torch.equal(apply_to_mask(cfg, mask, dataclasses.replace(draws, flip=True)), label.flip(1))
    assert torch.equal(apply_to_mask(cfg, mask, dataclasses.replace(draws, mirror=True))[3:11, 8:], block.flip(1))
    with pytest.raises(ValueError, match="shows nothing of an image"):
        apply_to_mask(cfg, mask, dataclasses.replace(draws, start=(30, 0)))


# --- turns ------------------------------------------------------------------------------------------------------------


def turned(view: np.ndarray, turn: Turn) -> np.ndarray:
    """By numpy: quarters against the clock, then upside down."""
    view = np.rot90(view, turn.quarters)
    return view[::-1] if turn.upside_down else view


@pytest.mark.parametrize("seed", range(16))
def test_turns_move_views_box_and_mask_alike_and_nothing_else(seed):
    """Against the views without turns, turned by numpy; colours, crops and flips are drawn as without turns."""
    plain, cfg, image = config(**COLOURFUL), config(**COLOURFUL, turns=True), coordinates(60, 80)
    draws = draw_views(cfg, (60, 80), seed)
    before = dataclasses.replace(draws, turn=NO_TURN, view2_turn=NO_TURN)
    assert before == draw_views(plain, (60, 80), seed)
    views, expected = apply_views(cfg, image, draws, MEAN, STD), apply_views(plain, image, before, MEAN, STD)
    for name, turn in (("image", draws.turn), ("local_source", draws.turn), ("view2", draws.view2_turn)):
        found = getattr(views, name).permute(1, 2, 0).numpy()
        assert np.array_equal(found, turned(getattr(expected, name).permute(1, 2, 0).numpy(), turn)), name
    assert views.valid_box.tolist() == [*box_of((views.image != 0).any(0).numpy())]
    mask = (coordinates(60, 80)[..., 0] // 20 + 1).astype(np.uint8)
    label = apply_to_mask(cfg, mask, draws).numpy()
    assert np.array_equal(label, turned(apply_to_mask(plain, mask, before).numpy(), draws.turn))
    assert box_of(label != 255) == tuple(views.valid_box.tolist())


def box_of(inside: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = inside.nonzero()
    return int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1


@pytest.mark.parametrize("seed", range(12))
def test_the_flow_between_two_frames_is_that_of_their_views(seed):
    """Each pixel of frame a has its row and column as a colour, and has them still where it lies in frame b."""
    right, down, size = 6, -3, (60, 80)
    cfg = config(turns=True, scale_range=(0.7, 1.7))
    draws = draw_views(cfg, size, seed)
    here = coordinates(*size)
    there = here.astype(int)
    there[..., :2] += [-down + 10, -right + 10]
    here[..., :2] += 10
    flow = torch.tensor([right, down]).float()[:, None, None].expand(2, *size)
    moved, holds = apply_to_motion(cfg, flow, in_image(flow[None])[0], draws)
    first, second = (
        grey_levels(apply_views(cfg, image.astype(np.uint8), draws, MEAN, STD).image) for image in (here, there)
    )
    found = warp(second[None].float(), moved[None])[0]
    assert holds.float().mean() > 0.1 and not holds[first[2] != BLUE].any()
    unmixed = holds & ((found[2] - BLUE).abs() < 1e-3)  # warping mixes what lies at the rim with padding
    assert unmixed.sum() > 0.9 * holds.sum()
    assert (found - first)[:2].abs()[:, unmixed].max() < 1.6  # two roundings, and half a pixel at the rim
    still = (second - first)[:2].abs()[:, holds].float()
    assert still.mean() > 3
    again = TrainViews(cfg, MEAN, STD).motion(flow, torch.ones(size, dtype=torch.bool), seed)
    assert torch.equal(again[0], moved) and (again[1] | ~holds).all()


def test_every_turn_occurs_and_both_global_views_turn_on_their_own():
    drawn = [draw_views(config(turns=True), (60, 80), seed) for seed in range(300)]
    counts = {turn: sum(draws.turn == turn for draws in drawn) for turn in {draws.turn for draws in drawn}}
    assert set(counts) == {Turn(quarters, upside) for quarters in range(4) for upside in (False, True)}
    assert min(counts.values()) > 18  # of 37.5 expected, with a standard deviation of 5.7
    assert 8 < sum(draws.turn == draws.view2_turn for draws in drawn) < 80
    assert {draws.turn for draws in (draw_views(config(), (60, 80), seed) for seed in range(20))} == {NO_TURN}


def test_runs_without_turns_keep_their_names():
    assert config().turns is False and config(turns=True).digest() != config().digest() == config(turns=False).digest()


@pytest.mark.parametrize("quirk", [{}, {"flip_valid_box": False}, {"flip_views_independently": True}])
def test_quirks_of_flips_stay_what_they_are_under_turns(quirk):
    """A box that stays behind its flip is turned like any other."""
    cfg = config(turns=True, flip_probability=1.0, **quirk)
    for seed in range(8):
        draws = draw_views(cfg, (60, 80), seed)
        views = apply_views(cfg, coordinates(60, 80), draws, MEAN, STD)
        before = apply_views(cfg, coordinates(60, 80), dataclasses.replace(draws, turn=NO_TURN), MEAN, STD)
        inside = np.zeros((96, 96), bool)
        top, bottom, left, right = before.valid_box.tolist()
        inside[top:bottom, left:right] = True
        assert box_of(turned(inside, draws.turn)) == tuple(views.valid_box.tolist())
