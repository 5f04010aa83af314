"""DuPL's falling threshold: the half cosine, the classes of an image, and when it begins."""

import math
from itertools import pairwise

import pytest
import torch

from toco_lab.config import Config
from toco_lab.method.falling_threshold import half_cosine, high_threshold, largest_of_present
from toco_lab.method.present import PresentClasses

CFG = Config.preset("toy").replace(high_threshold_end=[0.55])  # 160 steps, segmentation from step 20
SHOWN = PresentClasses.of(torch.tensor([[1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]))


def test_it_falls_by_half_a_cosine_between_the_first_and_the_last_step():
    fall = [high_threshold(CFG, step, SHOWN) for step in range(160)]
    assert fall[:21] == [0.7] * 21 and fall[159] == pytest.approx(0.55)
    for step in range(20, 160):
        assert fall[step] == pytest.approx(0.625 + 0.075 * math.cos(math.pi * (step - 20) / 139))
    assert all(first > second for first, second in pairwise(fall[20:]))
    later = CFG.replace(threshold_fall_start_step=100)
    assert high_threshold(later, 100, SHOWN) == 0.7 > high_threshold(later, 101, SHOWN)


@pytest.mark.parametrize("step, expected", [(-1, 0.7), (0, 0.7), (1, 0.5), (9, 0.5)])
def test_a_fall_of_one_step_divides_by_no_zero(step, expected):
    assert half_cosine(0.7, 0.5, step, 1) == expected


def test_without_an_end_it_stays():
    cfg = Config.preset("toy")
    assert {high_threshold(cfg, step, SHOWN) for step in (0, 20, 159, 160)} == {cfg.high_threshold}


def test_an_image_takes_the_largest_threshold_of_its_classes():
    ends = (0.5, 0.7, 0.55, 0.6, 0.7, 0.7)
    cfg = CFG.replace(high_threshold_end=ends)
    torch.testing.assert_close(high_threshold(cfg, 159, SHOWN), torch.tensor([0.6, 0.55, 0.5]))
    torch.testing.assert_close(high_threshold(cfg, 20, SHOWN), torch.full((3,), 0.7))
    one = [high_threshold(CFG.replace(high_threshold_end=[end]), 90, SHOWN) for end in ends]
    torch.testing.assert_close(high_threshold(cfg, 90, SHOWN), torch.tensor([max(one[0], one[3]), one[2], min(one)]))
    assert torch.equal(largest_of_present(ends, SHOWN), largest_of_present(ends, SHOWN.dense()))
