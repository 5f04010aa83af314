"""CAMs against their definition, mirror images, and maps of the present classes alone."""

import pytest
import torch
import torch.nn.functional as F

from toco_lab.config import Config
from toco_lab.method import cam
from toco_lab.method.labels import mask_by_label
from toco_lab.method.model import ToCo
from toco_lab.method.present import PresentClasses


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ToCo(Config.preset("smoke")).eval()


def slow_multi_scale(model, image, scales, *, relu=True):
    """The definition, one image and one pass at a time."""
    maps = []
    for x in image:
        total = 0
        for s in scales:
            size = int(x.shape[1] * s), int(x.shape[2] * s)
            scaled = F.interpolate(x[None], size=size, mode="bilinear", align_corners=False)
            pair = []
            for flip in (False, True):
                cam = model(scaled.flip(3) if flip else scaled).cam
                cam = F.interpolate(cam, size=tuple(x.shape[1:]), mode="bilinear", align_corners=False)
                pair.append(cam.flip(3) if flip else cam)
            total = total + (torch.maximum(*pair).clamp(min=0) if relu else torch.maximum(*pair))
        for channel in total[0]:
            channel -= channel.min()
            channel /= channel.max() + 1e-5
        maps.append(total[0])
    return torch.stack(maps)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (40, 56)])
def test_multi_scale_cam_is_its_definition(model, size, relu):
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = slow_multi_scale(model, image, (1.0, 0.5, 1.5), relu=relu)
        plain = model.encode(image)
    for given in (None, plain):
        cams = cam.multi_scale_cam(model, image, (1.0, 0.5, 1.5), plain=given, relu=relu)
        torch.testing.assert_close(cams.cam, expected, atol=2e-5, rtol=0)
    assert not torch.allclose(cams.cam, cams.cam_aux)


def test_relu_can_leave_nothing_of_a_class_that_the_pooled_tokens_show():
    tokens = torch.tensor([[1.0, -1.5, -2.0], [-1.5, 0.0, 1.0]])[None, :, None]  # (1, D, 1, 3): no token has both
    classifier = torch.ones(1, 2, 1, 1)
    assert F.conv2d(tokens.amax((2, 3), keepdim=True), classifier).item() == 2
    raw = F.conv2d(tokens, classifier)[None, None]  # (1, 1, B, C, h, w)
    assert not cam.fuse_flip(raw, (1, 3), flip=False).any()
    kept = cam.min_max(cam.fuse_flip(raw, (1, 3), flip=False, relu=False)).flatten()
    torch.testing.assert_close(kept, torch.tensor([1.0, 0.0, 0.5]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("changes", [
    {"aux_layer": -2}, {"aux_layer": -1},
    {"backbone": "resnet18", "patch_size": None, "embed_dim": None, "depth": None, "num_heads": None, "aux_layer": -2},
])  # fmt: skip
@pytest.mark.parametrize("flip", [True, False])
def test_the_auxiliary_maps_alone_are_the_same_maps(changes, flip):
    torch.manual_seed(0)
    model = ToCo(Config.preset("smoke").replace(**changes)).eval()
    image = torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        plain = model.encode(image)
    for given in (None, plain):
        asked = {"plain": given, "flip": flip, "size": (20, 30)}
        both = cam.multi_scale_cam(model, image, (1.0, 0.5), **asked)
        alone = cam.multi_scale_cam(model, image, (1.0, 0.5), aux_only=True, **asked)
        assert torch.equal(alone.cam_aux, both.cam_aux) and alone.cam.shape == (2, 0, 20, 30) != both.cam.shape
    with pytest.raises(ValueError, match="float64"):
        model.aux_maps(image.double())


def test_multi_scale_cam_of_a_mirror_image_is_the_mirror_image(model):
    image = torch.randn(1, 3, 32, 48)
    straight = cam.multi_scale_cam(model, image, (1.0, 0.5)).cam
    mirrored = cam.multi_scale_cam(model, image.flip(-1), (1.0, 0.5)).cam
    torch.testing.assert_close(mirrored.flip(-1), straight, atol=1e-5, rtol=0)


# none, one, all, a different number in each image
LABELS = {
    "none": torch.zeros(3, 6),
    "one": torch.eye(6)[[4, 0, 2]],
    "all": torch.ones(3, 6),
    "mixed": torch.tensor([[0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 1, 0]]).float(),
}


@pytest.fixture
def one_thread():
    """With one thread torch has a kernel of its own that resizes three channels, and rounds otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [None, (120, 88)])
@pytest.mark.parametrize("label", LABELS.values(), ids=LABELS)
def test_maps_of_present_classes_are_those_of_all_classes_masked(model, label, size, one_thread):
    """To the bit: no operation mixes classes."""
    torch.manual_seed(1)
    image, scales = torch.randn(3, 3, 96, 80), (1.0, 0.5, 1.5)
    every = cam.multi_scale_cam(model, image, scales)
    assert every.cam.shape == (3, 6, 96, 80) and torch.equal(every.dense().cam, every.cam)
    most = int(label.sum(1).max())
    for bound in (None, max(1, most), min(6, most + 2)):
        present = PresentClasses.of(label, bound)
        cams = cam.multi_scale_cam(model, image, scales, present=present, size=size)
        assert cams.present is present and cams.cam.shape[1] == (bound or max(1, most))
        dense = cams.dense()
        assert torch.equal(dense.present.mask, label.bool())
        for head in ("cam", "cam_aux"):
            expected = getattr(every, head) if size is None else cam.resize_each(getattr(every, head), size)
            assert torch.equal(getattr(dense, head), mask_by_label(expected, label))
            assert torch.equal(getattr(dense, head), present.scatter(getattr(cams, head)))
            assert bool(getattr(dense, head).any()) == bool(most)


def test_only_present_classes_are_resized(model, monkeypatch):
    resized, resize = [], cam.resize
    monkeypatch.setattr(cam, "resize", lambda maps, size: resized.append(maps.shape) or resize(maps, size))
    cam.multi_scale_cam(model, torch.randn(3, 3, 32, 32), (1.0,), present=PresentClasses.of(LABELS["mixed"]))
    assert resized == [(2 * 2 * 3 * 3, 1, 4, 4)]  # heads x mirroring x images x classes of the image with the most


def test_classes_that_do_not_fit_the_images_are_named(model):
    with pytest.raises(ValueError, match=r"\(2, 6\).*\(3, 6\)"):
        cam.multi_scale_cam(model, torch.zeros(3, 3, 32, 32), (1.0,), present=PresentClasses.of(torch.ones(2, 6)))


def test_images_come_to_the_evaluation_size():
    image = torch.randn(2, 3, 20, 30)
    expected = F.interpolate(image, (12, 12), mode="bilinear", align_corners=False)
    assert torch.equal(cam.at_evaluation_size(image, 12), expected)
    assert cam.at_evaluation_size(image, 0) is image
