"""Labels by hand: thresholds, boxes, regions, tokens."""

import numpy as np
import pytest
import torch

from toco_lab.method import labels
from toco_lab.method.present import PresentClasses


def test_labels_of_a_hand_made_map():
    cam = torch.tensor([[[[0.9, 0.6], [0.3, 0.2]], [[1.0, 0.1], [0.5, 0.0]]]])  # two classes on 2 x 2
    both = PresentClasses.of(torch.tensor([[1.0, 1.0]]))
    box = torch.tensor([[0, 2, 0, 2]])
    one_threshold = {"low": 0.5, "high": 0.5}
    assert labels.confident_label(cam, both, **one_threshold).tolist() == [[[2, 1], [0, 0]]]  # 0.5 is not above 0.5
    confident = labels.confident_label(cam, both, low=0.25, high=0.7, valid_box=box)
    assert confident.tolist() == [[[2, 255], [255, 0]]]
    assert labels.region_mask(cam, both, low=0.25, high=0.7).tolist() == [[[2, 1], [1, 0]]]
    half = torch.tensor([[0, 1, 0, 2]])
    assert labels.confident_label(cam, both, **one_threshold, valid_box=half).tolist() == [[[2, 1], [255, 255]]]
    assert labels.confident_label(cam, both, low=-1, high=-1).tolist() == [[[2, 1], [2, 1]]]  # the strongest class


def test_labels_of_present_classes_alone_are_those_of_all_classes():
    cam = torch.tensor([[[[0.9, 0.6], [0.3, 0.2]], [[1.0, 0.1], [0.5, 0.0]]]])
    expected = {  # by image label: labels at one threshold, regions at two
        (1, 0): ([[1, 1], [0, 0]], [[2, 1], [1, 0]]),
        (0, 1): ([[2, 0], [0, 0]], [[2, 0], [1, 0]]),
        (0, 0): ([[0, 0], [0, 0]], [[0, 0], [0, 0]]),
    }
    for image_label, (label, region) in expected.items():
        few = PresentClasses.of(torch.tensor([image_label]))
        for maps, present in ((few.gather(cam), few), (cam, few.dense())):
            assert labels.confident_label(maps, present, low=0.5, high=0.5).tolist() == [label]
            assert labels.region_mask(maps, present, low=0.25, high=0.7).tolist() == [region]


def test_each_image_may_have_its_own_upper_threshold():
    cam, present = torch.rand(3, 2, 6, 5), PresentClasses.of(torch.tensor([[1, 1], [1, 0], [0, 0]]))
    high = torch.tensor([0.9, 0.5, 0.3])
    together = labels.confident_label(cam, present, low=0.25, high=high)
    for image in range(3):
        alone = labels.confident_label(cam, present, low=0.25, high=float(high[image]))
        assert torch.equal(together[image], alone[image])
    assert (together[0] == 255).sum() > (together[1] == 255).sum() > 0 == together[2].sum()


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(1, 3\).*\(1, 2, 2, 2\)"):
        labels.mask_by_label(torch.zeros(1, 2, 2, 2), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(1, 3, 3\)"):
        labels.outside_to_ignore(torch.zeros(1, 3, 3), torch.zeros(2, 4))


def test_token_labels_divide_the_box_by_the_patch_only_when_sound():
    cam, present = torch.ones(1, 1, 32, 32), PresentClasses.of(torch.ones(1, 1))
    settings = {"low": 0.2, "high": 0.7, "patch_size": 8}
    box = torch.tensor([[0, 20, 4, 32]])  # rows 0..1 are whole; the first column is cut by the box
    sound = labels.token_labels(cam, present, (4, 4), box, **settings)
    assert sound[0].tolist() == [[255, 1, 1, 1], [255, 1, 1, 1], [255] * 4, [255] * 4]
    released = labels.token_labels(cam, present, (4, 4), box, **settings, box_units="pixels")
    assert released[0].tolist() == [[255] * 4] * 4  # column 4 in pixels lies outside the grid: everything is ignored


def test_true_masks_take_the_place_of_labels_image_by_image():
    label, mask = torch.zeros(3, 1, 2, dtype=torch.int64), torch.tensor([[[1, 255]], [[2, 2]], [[255, 255]]])
    known = labels.where_known(label, mask, [True, False, True])
    assert known.tolist() == [[[1, 255]], [[0, 0]], [[255, 255]]]  # 255 of a mask stays 255
    with pytest.raises(ValueError, match=r"mask \(3, 1, 2\) and has_mask of 2 do not fit label \(3, 1, 2\)"):
        labels.where_known(label, mask, [True, False])


def test_a_mask_puts_the_region_right():
    region = torch.tensor([[[0, 1, 2]] * 3])
    mask = torch.tensor([[[0] * 3, [4] * 3, [255] * 3]])
    assert labels.region_of_mask(mask, region).tolist() == [[[0, 0, 0], [1, 1, 2], [0, 1, 2]]]


def test_tokens_of_a_mask_are_those_whose_pixels_agree(rng):
    mask = torch.from_numpy(rng.choice([0, 3, 255], (2, 12, 8), p=[0.5, 0.45, 0.05]))
    mask[:, :8, :4] = 3
    mask[1, 8:, 4:] = 255
    mask[0, 10:] = 0
    made = labels.token_labels_of_mask(mask, (6, 4))
    for image, row, column in np.ndindex(2, 6, 4):
        shown = set(mask[image, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten().tolist())
        assert made[image, row, column] == (shown.pop() if len(shown) == 1 else 255)
    assert (made[:, :4, :2] == 3).all() and {0, 3, 255} == set(made.unique().tolist()) and made.dtype == torch.int64
