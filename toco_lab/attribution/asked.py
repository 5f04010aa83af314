"""What is measured: which maps, of which images and classes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toco_lab.attribution.catalogue import ATTRIBUTIONS, Attribution, methods_of
from toco_lab.attribution.controls import CONTROLS
from toco_lab.attribution.reading import block_number, check_image, logits_of, number_of_classes
from toco_lab.backbones.kinds import any_encoder_of
from toco_lab.backbones.modes import evaluating
from toco_lab.config import Config
from toco_lab.data.classes import class_names
from toco_lab.data.loader import eval_samples
from toco_lab.evaluation.samples import image_label_of
from toco_lab.files import did_you_mean, require
from toco_lab.method.cam import at_evaluation_size, multi_scale_cam
from toco_lab.method.face import CamModel
from toco_lab.method.present import PresentClasses
from toco_lab.methods import has_cams
from toco_lab.vocabulary import CAM, CAM_AUX, TITLES

CAMS = {TITLES[name]: name for name in (CAM, CAM_AUX)}  # of ToCo, at the scales of its config

Make = Callable[[nn.Module, Tensor, int | None], Tensor]  # (model, image (1, 3, H, W), class index) -> (1, H, W)
Methods = Sequence[str] | Mapping[str, Make]
Place = tuple[str, int | None]  # method and block, None where it is read at the usual one


@dataclass(frozen=True)
class Maker:
    """What makes a map, and whether the map depends on the class."""

    make: Make
    knows_class: bool = True


@dataclass(frozen=True)
class AskedClass:
    """A class of an image: its index (None where the model has no classifier), its name, and where it is.

    `where` is (H, W) bool at the native size of the image; None where no mask is known.
    """

    index: int | None
    name: str
    where: Tensor | None


@dataclass(frozen=True)
class AskedImage:
    """An image as the model sees it, (1, 3, H, W) normalised; `longest_side` in pixels is that of its native size."""

    name: str
    image: Tensor
    longest_side: int
    classes: list[AskedClass]


def makers_of(
    model: nn.Module, cfg: Config | None, methods: Methods | None, blocks: Sequence[int] | None
) -> dict[Place, Maker]:
    """A maker for each map that is asked for; arguments and errors as in `measured.measure_attributions`."""
    cams = list(CAMS) if isinstance(model, CamModel) and cfg is not None and has_cams(cfg) else []
    own = methods if isinstance(methods, Mapping) else {}
    for block in blocks or ():
        block_number(any_encoder_of(model), block)
    names = [*cams, *methods_of(model), *CONTROLS] if methods is None else methods
    numbers: Sequence[int | None] = blocks or [None]
    makers: dict[Place, Maker] = {}
    for name in [names] if isinstance(names, str) else names:
        if name in own:
            makers[name, None] = Maker(own[name])
        elif name in cams and cfg is not None:
            makers[name, None] = Maker(_cam(CAMS[name], cfg))
        elif name in CONTROLS:
            makers[name, None] = _control(name)
        elif name in ATTRIBUTIONS:
            makers |= {(name, block): _at_block(ATTRIBUTIONS[name], block) for block in numbers}
        else:
            known = [*cams, *ATTRIBUTIONS, *CONTROLS]
            more = ". That needs a model that has CAMs, and its config" if name in CAMS else ""
            hint = did_you_mean(name, known) or f"; there are: {', '.join(known)}"
            raise ValueError(f"unknown method {name!r}{hint}{more}")
    if not makers:
        raise ValueError("methods must name at least one attribution")
    return makers


def _control(name: str) -> Maker:
    generator = torch.Generator().manual_seed(0)
    return Maker(lambda model, image, _: CONTROLS[name](model, image, generator), knows_class=False)


def _at_block(attribution: Attribution, block: int | None) -> Maker:
    return Maker(lambda model, image, index: attribution(model, image, index, block=block), attribution.knows_class)


def _cam(which: str, cfg: Config) -> Make:
    """ToCo's own CAM of one class, at the scales of the config."""

    def make(model: nn.Module, image: Tensor, class_index: int | None) -> Tensor:
        assert isinstance(model, CamModel) and class_index is not None
        index = torch.tensor([[class_index]], device=image.device)
        present = PresentClasses(index, torch.ones_like(index, dtype=torch.bool), model.num_classes)
        return getattr(multi_scale_cam(model, image, cfg.cam_scales, present=present, relu=cfg.cam_relu), which)[:, 0]

    return make


def images_of(
    model: nn.Module, cfg: Config | None, images: int | Iterable[Tensor], split: str | None
) -> Iterator[AskedImage]:
    """The images that are asked for, with their classes; arguments and errors as in `measured.measure_attributions`."""
    if isinstance(images, int):
        yield from _samples(model, cfg, images, split)
        return
    device = next(model.parameters()).device
    for number, image in enumerate(images, start=1):
        check_image(image[None])
        pixels = image[None].to(device)
        with evaluating(model):
            index = int(logits_of(model, pixels)[0].argmax()) if number_of_classes(model) else None
        asked = AskedClass(index, "none" if index is None else str(index), None)
        yield AskedImage(f"image {number}", pixels, max(image.shape[-2:]), [asked])


def _samples(model: nn.Module, cfg: Config | None, count: int, split: str | None) -> Iterator[AskedImage]:
    """The first samples of a split that show a class."""
    if count < 1:
        raise ValueError(f"images must be at least 1, or a list of images, got {count}")
    if not isinstance(model, CamModel) or cfg is None:
        raise ValueError("a number of images needs a run, or a ToCo model and its config; else give the images")
    require(cfg, Config, "cfg", ": it is that of the run, run.config()")
    names, left = class_names(cfg), count
    for sample in iter(eval_samples(cfg, model.mean, model.std, split)):
        present = image_label_of(sample).nonzero().flatten().tolist()
        if not present:
            continue
        pixels = at_evaluation_size(sample.image[None].to(next(model.parameters()).device), cfg.eval_cam_size)
        mask = sample.mask
        classes = [AskedClass(i, names[i], None if mask is None else mask == i + 1) for i in present]
        yield AskedImage(sample.name, pixels, max(sample.image.shape[-2:]), classes)
        left -= 1
        if not left:
            return
