"""How much true object the local crops of class token contrast show: whether their flags say the truth."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.data.loader import EvalSample
from toco_lab.evaluation.samples import mask_of
from toco_lab.method.crops import NEGATIVE, POSITIVE, cut_local_views, local_crops
from toco_lab.method.labels import region_mask
from toco_lab.method.present import PresentClasses
from toco_lab.training.processes import total
from toco_lab.vocabulary import CROP_OBJECTS

AUX_SCORES = "cam_aux_scores"  # of `prediction.predict`


class CropObjects:
    """Counts over images what positive and negative crops show. It costs no encoder pass: the CAMs are there already.

    Crops are drawn as in training, from the auxiliary CAM of the evaluation at the native size of the image (training
    draws them on a scaled and cropped one), always with the same random numbers. An image that is not larger than a
    crop is left out.
    """

    def __init__(self, cfg: Config) -> None:
        """`cfg` says how crops are drawn."""
        self._cfg = cfg
        self._sums = torch.zeros(2, 2, dtype=torch.float64)  # positive, negative: sum of shares, number of crops

    def add(self, group: Sequence[EvalSample], predicted: Mapping[str, Tensor]) -> None:
        """Count the crops of images of one size, with masks, of which `predict` knows the auxiliary CAM."""
        score = predicted[AUX_SCORES]
        if min(score.shape[-2:]) <= self._cfg.local_crop_size:
            return
        one_class = PresentClasses.of(score.new_ones(len(score), 1), 1)
        region = region_mask(score[:, None], one_class, low=self._cfg.low_threshold, high=self._cfg.high_threshold)
        crops = local_crops(region, self._cfg, generator=torch.Generator().manual_seed(0))
        truth = torch.stack([mask_of(sample) for sample in group]).to(score.device)[:, None]
        seen = torch.cat([(truth > 0) & (truth != IGNORE_INDEX), truth != IGNORE_INDEX], dim=1)
        counts = cut_local_views(seen.double(), crops).sum((-2, -1)).unflatten(0, (-1, len(score)))  # (n, B, 2)
        share = (counts[..., 0] / counts[..., 1]).T  # (B, n): of the pixels whose class is known
        for row, kind in enumerate((POSITIVE, NEGATIVE)):
            counted = (crops.kind == kind) & share.isfinite()
            self._sums[row, 0] += share[counted].sum().cpu()
            self._sums[row, 1] += counted.sum().cpu()

    def shares(self) -> dict[str, float]:
        """Mean share of true object, in [0, 1], of the crops of all processes together, by name of `CROP_OBJECTS`.

        NaN for a kind of which there was no crop. All processes must call it.
        """
        sums = total(self._sums)
        return dict(zip(CROP_OBJECTS, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))
