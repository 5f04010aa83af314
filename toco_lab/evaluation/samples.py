"""What evaluation needs of a sample beyond its image: its label and its mask, or an error that names it."""

from torch import Tensor

from toco_lab.data.loader import EvalSample


def image_label_of(sample: EvalSample) -> Tensor:
    """The true image label, (C,) in {0, 1}.

    Raises:
        ValueError: If it would come from a mask that is not there.
    """
    if sample.image_label is None:
        raise ValueError(f"{sample.name} has no mask and so no image label; train with a label file (`label_source`)")
    return sample.image_label


def mask_of(sample: EvalSample) -> Tensor:
    """The mask, (H, W) int64.

    Raises:
        ValueError: If there is none.
    """
    if sample.mask is None:
        raise ValueError(f"{sample.name} has no mask: there is nothing to evaluate against")
    return sample.mask
