"""The image of a CAM session: what the encoder made of it once, and the results that are kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.backbones.pixels import normalise
from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.method.cam import at_evaluation_size, raw_cams
from toco_lab.method.face import CamModel, Output


@dataclass(frozen=True)
class SessionImage:
    """An image after its plain pass through the model.

    Attributes:
        name: For tables and titles.
        raw: (H, W, 3) uint8 at native size.
        truth: (H, W) int64 mask; None if unknown.
        image_label: (C,) float in {0, 1}.
        label_source: `true`, or `predicted` by the final classifier.
        pixels: (1, 3, h, w) normalised, at the size the CAMs are made at.
        output: All of the plain pass over `pixels`.
        raw_cams: For each scale that has run (2, 2, 1, C, h, w), see `cam.raw_cams`.
        kept: Results of `keep`, by what they depend on.
    """

    name: str
    raw: np.ndarray
    truth: Tensor | None
    image_label: Tensor
    label_source: str
    pixels: Tensor
    output: Output
    raw_cams: dict[float, Tensor] = field(default_factory=dict, repr=False)
    kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W), native."""
        return self.raw.shape[0], self.raw.shape[1]

    @property
    def present(self) -> tuple[int, ...]:
        """Indices 0..C-1 of the classes in the image label."""
        return tuple(self.image_label.nonzero().flatten().tolist())

    @property
    def strongest_class(self) -> int:
        """The present class with the largest logit; of all classes if none is present."""
        allowed = self.image_label if self.image_label.any() else torch.ones_like(self.image_label)
        return int(self.output.logits[0].masked_fill(allowed == 0, -torch.inf).argmax())

    def run_scale(self, model: CamModel, scale: float) -> None:
        """Let the encoder see the image at `scale` times its size, unless it has."""
        if scale not in self.raw_cams:
            self.raw_cams[scale] = raw_cams(model, self.pixels, scale, plain=self.output.features)

    def keep(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once for each key."""
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]


def _check_mask(mask: Tensor, num_classes: int) -> None:
    """ValueError for a number that is no label."""
    is_label = ((mask >= 0) & (mask <= num_classes) & (mask % 1 == 0)) | (mask == IGNORE_INDEX)
    if not is_label.all():
        wrong = mask[~is_label][0].item()
        raise ValueError(f"mask holds {wrong}; allowed are whole numbers 0..{num_classes} and {IGNORE_INDEX}")


def _numbers(name: str, values: Any) -> Tensor | None:
    try:
        return None if values is None else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be an array or a tensor of numbers, got {type(values).__name__}") from error


@torch.no_grad()
def encode_image(
    model: CamModel,
    cfg: Config,
    raw: np.ndarray,
    *,
    image_label: np.ndarray | Tensor | None = None,
    mask: np.ndarray | Tensor | None = None,
    name: str = "",
    scales: Sequence[float] = (),
) -> SessionImage:
    """Run the encoder over an image; arguments and errors as in `CamSession.set_image`.

    `scales` run at once, further ones when they are asked for.
    """
    raw = np.asarray(raw)
    if raw.dtype != np.uint8 or raw.ndim != 3 or raw.shape[2] != 3:
        raise ValueError(f"the image must be uint8 (H, W, 3), got {raw.dtype} {raw.shape}; see decode_image")
    image_label, mask = _numbers("image_label", image_label), _numbers("mask", mask)
    if mask is not None and tuple(mask.shape) != raw.shape[:2]:
        raise ValueError(f"mask {tuple(mask.shape)} does not fit the image {raw.shape[:2]}")
    if image_label is not None and tuple(image_label.shape) != (cfg.num_classes,):
        raise ValueError(f"image_label {tuple(image_label.shape)} must be ({cfg.num_classes},)")
    if image_label is not None and not ((image_label == 0) | (image_label == 1)).all():
        raise ValueError("image_label must hold 0 and 1 alone, 1 where a class is present")
    if mask is not None:
        _check_mask(mask, cfg.num_classes)
    device = next(model.parameters()).device
    pixels = normalise(torch.tensor(raw).permute(2, 0, 1).contiguous(), model.mean, model.std)
    pixels = at_evaluation_size(pixels[None].to(device), cfg.eval_cam_size)
    output = model(pixels)
    label = predicted_label(output.logits[0]) if image_label is None else image_label
    image = SessionImage(
        name=name,
        raw=raw,
        truth=None if mask is None else mask.long().to(device),
        image_label=label.float().to(device),
        label_source="predicted" if image_label is None else "true",
        pixels=pixels,
        output=output,
    )
    for scale in scales:
        image.run_scale(model, scale)
    return image


def predicted_label(logits: Tensor) -> Tensor:
    """(C,) in {0, 1} of image logits (C,): the positive ones, the largest one if there is none."""
    label = (logits > 0).float()
    return label if label.any() else F.one_hot(logits.argmax(), len(logits)).float()
