"""What a model says of one image."""

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from toco_lab.data.classes import PALETTE
from toco_lab.data.instances import Instance
from toco_lab.evaluation.boxes import class_instances
from toco_lab.vocabulary import BACKGROUND

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_CAMS = 4  # of the present classes with the highest scores
DRAWN_SIDE = 1000  # pixels of a picture in a figure, at most


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of one image. All maps have the size of the image.

    Attributes:
        name: Of the image: that of its file without extension; "image" where it came from no file.
        image: (H, W, 3) uint8, as it is displayed.
        labels: Class name -> score of the classifier in [0, 1], every class in the order of `class_names`.
        present: Names of the classes that count as present, in the same order; see the protocol for the rule.
        cams: CAM of each present class, (P, H, W) float32 in [0, 1], in the order of `present`; (0, H, W) of a method
            that has no CAM.
        cams_aux: The same from the auxiliary tokens.
        mask: (H, W) uint8: 0 background, k + 1 for class number k of `class_names`.
        class_names: The C classes.
        protocol: Everything that defines this prediction: weights, scales, thresholds, rules.
    """

    name: str
    image: np.ndarray
    labels: dict[str, float]
    present: tuple[str, ...]
    cams: np.ndarray
    cams_aux: np.ndarray
    mask: np.ndarray
    class_names: tuple[str, ...]
    protocol: dict[str, Any]

    def cam(self, class_name: str) -> np.ndarray:
        """The CAM of a present class, (H, W) float32 in [0, 1].

        Raises:
            ValueError: If the class is not present, or the method of the model has no CAM.
        """
        if not self.has_cams:
            raise ValueError("this model learnt from masks and has no CAM: take the mask")
        if class_name not in self.present:
            there = ", ".join(self.present) or "none"
            raise ValueError(f"{class_name!r} is not among the present classes ({there}): tell it, classes=[...]")
        return self.cams[self.present.index(class_name)]

    @property
    def has_cams(self) -> bool:
        """Whether there is a CAM of each present class."""
        return len(self.cams) == len(self.present)

    @property
    def in_mask(self) -> tuple[str, ...]:
        """Names of the classes that the mask shows."""
        return tuple(self.class_names[number - 1] for number in np.unique(self.mask) if number)

    @property
    def instances(self) -> list[Instance]:
        """The objects of the present classes, 8-connected pieces of the mask, the highest score first.

        A score is the mean CAM inside times the score of the class; of a method without CAMs it is the score of the
        class alone. What is smaller than half a per cent of the image is no object.
        """
        maps = self.cams if self.has_cams else np.ones((len(self.present), *self.mask.shape), np.float32)
        found = [
            one
            for name, cam in zip(self.present, maps, strict=True)
            for number in [self.class_names.index(name) + 1]
            for one in class_instances(cam, self.mask == number, number, probability=self.labels[name])
        ]
        return sorted(found, key=lambda one: -one.score)

    @property
    def strongest(self) -> tuple[str, ...]:
        """The present classes, the highest score first."""
        return tuple(sorted(self.present, key=lambda name: -self.labels[name]))

    def __repr__(self) -> str:
        scores = ", ".join(f"{name} {100 * self.labels[name]:.0f} %" for name in self.strongest)
        height, width = self.mask.shape
        return f"Prediction({self.name!r}, {width} x {height} pixels, {scores or 'no class'})"

    # --- to look at ---------------------------------------------------------------------------------------------------

    def figure(self, *, size: float = 2.6) -> "Figure":
        """Image, CAMs of the present classes (four at most) and mask in a row; `size` is a side in inches."""
        from toco_lab.figures.pictures import cam_gallery, plain_text

        step = -(-max(self.mask.shape) // DRAWN_SIDE)  # a photo has far more pixels than the figure
        row: dict[str, np.ndarray | None] = {"image": self.image[::step, ::step]}
        for name in self.strongest[: SHOWN_CAMS * self.has_cams]:
            row[plain_text(f"CAM {name} ({100 * self.labels[name]:.0f} %)")] = self.cam(name)[::step, ::step]
        row["mask" if self.present else "mask (no class is present)"] = self.mask[::step, ::step]
        legend = (BACKGROUND, *self.class_names)
        return cam_gallery([row], palette=PALETTE, class_names=legend, size=size, title=plain_text(self.name))

    def show(self) -> None:
        """Draw the figure: in a notebook below the cell, elsewhere in the system's picture viewer."""
        if "IPython" in sys.modules and sys.modules["IPython"].get_ipython():
            from IPython.display import display

            display(self)
        else:
            Image.open(io.BytesIO(self._repr_png_())).show(self.name)

    def _repr_png_(self) -> bytes:
        """What a notebook shows of a prediction that ends a cell."""
        file = io.BytesIO()
        self.figure().savefig(file, format="png", dpi=100)
        return file.getvalue()

    # --- to keep ------------------------------------------------------------------------------------------------------

    def save(self, folder: Path | str, *, scores: bool = False, boxes: bool = False) -> list[Path]:
        """Write overlays, mask and, on request, soft scores and boxes; see `output` for the files.

        Args:
            folder: It is made if needed; files of the same image are replaced.
            scores: Also write the CAMs as they are, float16 in an .npz.
            boxes: Also draw the boxes of `instances`, and write them as a json.

        Returns:
            The files.
        """
        from toco_lab.prediction.output import OutputFolder

        out = OutputFolder(Path(folder), self.class_names, scores=scores, boxes=boxes, cams=self.has_cams)
        return out.write(self)
