"""Views: the colours of the test image are its own coordinates, so geometry can be read back from the pixels."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from toco_lab.backbones.pixels import denormalise, normalise
from toco_lab.config import Config
from toco_lab.data.views import ColourJitter, RandomBlur, TrainViews, gaussian_blur, shift_hue

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = {
    "jitter_probability": 0.0, "grey_probability": 0.0, "blur_probability": (0.0, 0.0, 0.0),
    "solarise_probability": 0.0, "scale_range": (1.0, 1.0), "crop_size": 96, "view2_size": 64, "flip_probability": 0.5,
}  # fmt: skip
COLOURFUL = {"jitter_probability": 0.8, "grey_probability": 0.2, "blur_probability": (1.0, 0.1, 0.5)}
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


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_is_torchvisions_inside_and_keeps_flat_images(sigma):
    image = torch.rand(3, 40, 30)
    size = 2 * int(np.ceil(3 * sigma)) + 1
    expected = functional.gaussian_blur(image, [size, size], [sigma, sigma])
    inner = (slice(None), slice(size, -size), slice(size, -size))
    torch.testing.assert_close(gaussian_blur(image, sigma)[inner], expected[inner])
    tiny = torch.full((3, 2, 1), 0.7)  # smaller than the kernel
    torch.testing.assert_close(gaussian_blur(tiny, sigma), tiny)


def test_blur_probability():
    blur, image = RandomBlur(0.3), torch.rand(3, 8, 8)
    torch.manual_seed(0)
    assert 20 < sum(not torch.equal(blur(image), image) for _ in range(100)) < 40


def test_released_padding_is_black():
    views = TrainViews(config(padding="black"), MEAN, STD)(coordinates(60, 80), 0)
    sound = TrainViews(config(), MEAN, STD)(coordinates(60, 80), 0)
    box = views.valid_box.tolist()
    inside = torch.zeros(96, 96, dtype=torch.bool)
    inside[box[0] : box[1], box[2] : box[3]] = True
    assert torch.equal(views.image[:, inside], sound.image[:, inside])
    assert denormalise(views.image, MEAN, STD)[:, ~inside].abs().max() < 1e-4


@pytest.mark.parametrize("shift", [-0.5, -0.07, 0.0, 0.1])
def test_hue_is_torchvisions_and_leaves_grey_alone(shift):
    image = torch.rand(3, 20, 30)
    image[:, 0] = torch.rand(30)  # grey
    image[0, 1] = image[1, 1] = 1.0  # two channels equally strong
    image[:, 2] = 0.0
    torch.testing.assert_close(shift_hue(image, shift), functional.adjust_hue(image, shift), atol=3e-6, rtol=0)
    assert torch.equal(shift_hue(image, shift)[:, 0], image[:, 0])
    red = torch.tensor([0.8, 0.2, 0.2])[:, None, None]
    assert shift_hue(red, 1 / 3)[:, 0, 0].tolist() == pytest.approx([0.2, 0.8, 0.2])


@pytest.mark.parametrize("strengths", [(0.4, 0.4, 0.2, 0.1), (0.4, 0.0, 0.2, 0.0)])
def test_jitter_is_torchvisions_with_the_same_draws(strengths):
    image = torch.rand(3, 20, 30)
    for seed in range(12):  # several orders of the four changes
        changed = []
        for jitter in (ColourJitter(*strengths), v2.ColorJitter(*strengths)):
            torch.manual_seed(seed)
            changed.append((jitter(image), torch.rand(())))
        torch.testing.assert_close(changed[0], changed[1], atol=1e-5, rtol=0)
