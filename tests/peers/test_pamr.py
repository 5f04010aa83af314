"""PAMR against the arrays of the authors' code, and what it must do on a simple image."""

import torch
import torch.nn.functional as F
from helpers.baseline_goldens import assert_near, load_golden, needed, part

from toco_lab.peers.pamr import pamr, pamr_weights


@needed
def test_maps_refined_by_pamr():
    arrays, _ = load_golden("getam")
    online = part(arrays, "online/")
    size = online["image"].shape[-2:]
    upsampled = F.interpolate(arrays["native/maps"], size, mode="bilinear", align_corners=True)
    assert_near(upsampled, online["upsampled"], 2e-5)
    refined = pamr(online["image"].float(), online["upsampled"])
    assert_near(refined, online["pamr"], 2e-5)
    assert_near(refined / (refined.amax((2, 3), keepdim=True) + 1e-5), online["normalised"], 2e-5)


def test_it_follows_the_image_and_keeps_the_range():
    image, mask = torch.zeros(1, 3, 12, 12), torch.full((1, 1, 12, 12), 0.5)
    image[..., 6:] = 255  # an edge in the image ...
    mask[..., 8:] = 1  # ... and a mask that starts two pixels late
    out = pamr(image, mask, dilations=(1, 2))
    assert out[..., 6].min() > 0.7 > 0.6 > out[..., 5].max()
    torch.testing.assert_close(pamr_weights(image, (1, 2)).sum(1), torch.ones(1, 12, 12))
    torch.testing.assert_close(pamr(image, torch.ones_like(mask)), torch.ones_like(mask))
