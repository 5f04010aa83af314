"""PAR and the pseudo label against the loops of oracles.py, and what each must do on simple images."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import oracles

from toco_lab.method import refine
from toco_lab.method.labels import outside_to_ignore
from toco_lab.method.present import PresentClasses
from toco_lab.method.refine import par, par_filter, par_weights, refine_cam

THRESHOLDS = dict(low=0.25, high=0.7)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# --- PAR ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "dilations", "num_iter"), [((5, 7), (1, 2), 3), ((4, 3), (1, 6), 2), ((1, 5), (2,), 1)]
)
@pytest.mark.parametrize("numbers", [0, 2 * 4 * 8 * 15, 2**27])  # one neighbour at a time, one dilation, all
def test_par_equals_the_loops(size, dilations, num_iter, numbers, monkeypatch):
    monkeypatch.setattr(refine, "in_stacks", lambda maps: numbers > 0)
    monkeypatch.setattr(refine, "STACK_NUMBERS", numbers)
    image, masks = rand(2, 3, *size), rand(2, 4, *size, seed=1)
    actual = par(image, masks, dilations=dilations, num_iter=num_iter)
    for i in range(2):
        expected = oracles.par(image[i].double().numpy(), masks[i].double().numpy(), dilations, num_iter)
        np.testing.assert_allclose(actual[i], expected, rtol=0, atol=2e-6)


def test_stacks_have_the_neighbours_in_order_and_keep_to_their_size(monkeypatch):
    maps, dilations = rand(2, 3, 6, 8), (1, 2, 4)
    for numbers, sizes in ((1, [8, 8, 8]), (8 * maps.numel() * 2, [16, 8]), (8 * maps.numel() * 5, [24])):
        monkeypatch.setattr(refine, "STACK_NUMBERS", numbers)
        stacks = list(refine.neighbour_stacks(maps, dilations))
        assert [stack.shape[1] for stack in stacks] == sizes
        assert torch.equal(torch.cat(stacks, 1), torch.stack(list(refine.neighbours(maps, dilations)), 1))


def test_on_a_gpu_par_takes_stacks():
    image, masks = torch.empty(1, 3, 6, 6, device="meta"), torch.empty(1, 2, 6, 6, device="meta")
    assert refine.in_stacks(masks) and not refine.in_stacks(masks.new_empty(1, device="cpu"))
    assert par(image, masks).shape == (1, 2, 6, 6)


def test_par_resizes_masks_with_aligned_corners():
    image, small = rand(1, 3, 9, 11), rand(1, 2, 4, 5)
    resized = F.interpolate(small, size=(9, 11), mode="bilinear", align_corners=True)
    assert torch.equal(par(image, small, num_iter=2), par(image, resized, num_iter=2))
    assert not torch.allclose(par(image, small, num_iter=1), par(image, small, num_iter=2))


def test_par_weights_sum_to_one_and_a_hundredth_also_on_a_flat_image():
    for image in (rand(1, 3, 6, 6), torch.full((1, 3, 6, 6), 0.4)):
        weights = par_weights(image)
        assert weights.shape == (1, 48, 6, 6)
        torch.testing.assert_close(weights.sum(1), torch.full((1, 6, 6), 1.01))


def test_par_follows_the_image():
    image, mask = torch.zeros(1, 3, 12, 12), torch.full((1, 1, 12, 12), 0.5)
    image[..., 6:] = 1  # an edge in the image ...
    mask[..., 8:] = 1  # ... and a mask that starts two pixels late
    out = par(image, mask, dilations=(1, 2))
    assert out[..., 6].min() > 0.75 > 0.65 > out[..., 5].max()


def test_par_names_wrong_shapes():
    with pytest.raises(ValueError, match=r"\(1, 48, 6, 6\).*\(1, 2, 6, 5\)"):
        par_filter(par_weights(rand(1, 3, 6, 6)), rand(1, 2, 6, 5))


# --- pseudo label ---------------------------------------------------------------------------------


def scene(batch=3, classes=4, size=(24, 32)):
    """Random smooth CAMs with 2, 1 and 0 present classes."""
    label = torch.zeros(batch, classes)
    label[0, [1, 3]] = 1
    label[1, 2] = 1
    cam = F.interpolate(rand(batch, classes, 4, 5, seed=3), size=size, mode="bilinear") * label[:, :, None, None]
    box = torch.tensor([[0, size[0], 0, size[1]], [2, 20, 0, 30], [0, 24, 5, 32]])[:batch]
    return rand(batch, 3, *size, seed=4), cam, label, box


def refined(image, cam, label, box, max_present=None, **settings):
    """`refine_cam` of the present classes of maps of all classes."""
    present = PresentClasses.of(label, max_present)
    return refine_cam(image, present.gather(cam), present, valid_box=box, **THRESHOLDS, **settings)


def slow_label(image, cam, label, box, dilations, num_iter):
    """One image, one threshold after the other, only the present classes."""
    present = [c for c in range(len(label)) if label[c]]
    runs = []
    half = F.interpolate(image[None], size=(image.shape[1] // 2, image.shape[2] // 2), mode="bilinear")
    for background in (0.7, 0.25):
        stack = torch.cat([torch.full_like(cam[:1], background), cam[present]])[None]
        scores = F.interpolate(stack, size=half.shape[2:], mode="bilinear").softmax(1)
        refined = oracles.par(half[0].double().numpy(), scores[0].double().numpy(), dilations, num_iter)
        winner = F.interpolate(torch.from_numpy(refined)[None], size=image.shape[1:], mode="bilinear")[0].argmax(0)
        runs.append(torch.tensor([0, *(c + 1 for c in present)])[winner])
    out = torch.full(image.shape[1:], 255)
    for y in range(box[0], box[1]):
        for x in range(box[2], box[3]):
            high, low = runs[0][y, x], runs[1][y, x]
            out[y, x] = high if high > 0 else (0 if low == 0 else 255)
    return out


def test_refined_label_equals_the_loops():
    image, cam, label, box = scene()
    actual = refined(image, cam, label, box, dilations=(1, 2), num_iter=3)
    assert actual.dtype == torch.int64
    for i in range(3):
        expected = slow_label(image[i], cam[i], label[i], box[i], (1, 2), 3)
        assert (actual[i] != expected).sum() <= 1  # a tie may fall either way
    assert set(actual[0].unique().tolist()) >= {0, 2, 255} and set(actual[2].unique().tolist()) == {0, 255}


def test_each_image_may_have_its_own_upper_threshold():
    image, cam, label, box = scene()
    present = PresentClasses.of(label)
    found = [
        refine_cam(image, present.gather(cam), present, valid_box=box, low=0.25, high=high)
        for high in (0.7, 0.45, 0.3, torch.tensor([0.7, 0.45, 0.3]))
    ]
    assert torch.equal(found[3], torch.stack([found[image][image] for image in range(3)]))
    assert (found[1] != found[0]).any(), "the threshold matters"


def test_refined_label_does_not_depend_on_the_batch_or_on_places_for_absent_classes():
    image, cam, label, box = scene()
    together = refined(image, cam, label, box)
    for bound in (2, 3, 4):
        assert torch.equal(together, refined(image, cam, label, box, max_present=bound))
    flipped = refined(image.flip(0), cam.flip(0), label.flip(0), box.flip(0))
    assert torch.equal(together, flipped.flip(0))
    for i in range(3):
        one = slice(i, i + 1)
        assert torch.equal(together[one], refined(image[one], cam[one], label[one], box[one]))


def test_absent_classes_cannot_win():
    image, cam, label, box = scene()
    assert torch.equal(
        refined(image, cam, label, box),
        refined(image, cam + (1 - label)[:, :, None, None], label, box, max_present=4),
    )


def test_one_threshold_leaves_nothing_open_inside_the_box():
    image, cam, label, box = scene()
    present = PresentClasses.of(label)
    whole = refine_cam(image, present.gather(cam), present, low=0.4, high=0.4)
    assert not (whole == 255).any() and {0, 2, 4} <= set(whole[0].unique().tolist())
    boxed = refine_cam(image, present.gather(cam), present, low=0.4, high=0.4, valid_box=box)
    assert torch.equal(boxed, outside_to_ignore(whole, box)) and (boxed[1] == 255).any()


def test_refine_cam_names_wrong_shapes():
    image, cam, label, box = scene()
    with pytest.raises(ValueError, match=r"\(3, 2, 24, 32\).*\(3, 3, 24, 31\)"):
        refined(image[..., 1:], cam, label, box)
    with pytest.raises(ValueError, match=r"\(3, 4, 24, 32\).*\(3, 2\)"):
        refine_cam(image, cam, PresentClasses.of(label), **THRESHOLDS)
    with pytest.raises(ValueError, match=r"valid_box \(2, 4\).*\(3, 24, 32\)"):
        refined(image, cam, label, box[1:])
