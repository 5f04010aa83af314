"""An encoder with ToCo's decoder that learns from masks: the second stage, and what a few masks give by themselves.

Masks are true ones or pseudo labels, `Config.mask_source`, or true ones of a few images, `Config.masks_for`; images
without a mask can teach by their confident predictions (`consistency`). Soft labels are those of Hinton, Vinyals &
Dean, "Distilling the Knowledge in a Neural Network" (2015), one for each token: a run that is named
`Config.soft_teacher` segments the same view. There is no image classifier, and so there is no CAM.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from toco_lab.backbones.kinds import fill_patches, is_plain_vit, stage_maps
from toco_lab.backbones.pixels import check_images
from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.method.batch import Batch
from toco_lab.method.cam import resize
from toco_lab.method.face import BringsLosses, Output
from toco_lab.method.labels import inside_box, token_box
from toco_lab.method.losses import seg_loss
from toco_lab.method.model import LargeFOVDecoder
from toco_lab.method.step import StepOutput, enlarge, weighted_terms
from toco_lab.peers.consistency import certain_label, consistency_loss, strong_view

Teacher = Callable[[Tensor], Tensor]  # images as the student sees them, (B, 3, S, S) -> logits (B, C + 1, h', w')


def soft_label_loss(logits: Tensor, target: Tensor, inside: Tensor, *, temperature: float) -> Tensor:
    """t^2 KL(softmax(target / t) || softmax(logits / t)) of each token, averaged (Hinton et al. 2015).

    The factor keeps the size of the gradient about the same at every temperature.

    Args:
        logits: Of the student, (B, K, h, w).
        target: Of the teacher, (B, K, h, w); no gradient reaches it.
        inside: (B, h, w) bool, False for tokens of padding, which do not count.
        temperature: t > 0.

    Returns:
        Scalar >= 0; 0 if no token is inside.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if target.shape != logits.shape or inside.shape != logits[:, 0].shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} do not fit target {tuple(target.shape)} and inside {tuple(inside.shape)}: "
            "need (B, K, h, w) twice and (B, h, w)"
        )
    student, teacher = ((one / temperature).log_softmax(1) for one in (logits, target.detach()))
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)  # (B, h, w)
    return temperature**2 * (divergence * inside).sum() / inside.sum().clamp(min=1)


def class_margins(seg_logits: Tensor) -> Tensor:
    """Image logits (B, C) of a segmentation (B, C + 1, h, w): by how much a class beats all others where it does best.

    A logit is positive if and only if the segmentation shows the class somewhere.
    """
    first, second = seg_logits.topk(2, dim=1).values.split(1, dim=1)
    rival = torch.where(seg_logits == first, second, first)
    return (seg_logits - rival)[:, 1:].amax((2, 3))


class Supervised(BringsLosses):
    """Any encoder with the LargeFOV decoder on its final tokens.

    Attributes:
        teacher: Gives the soft labels of a step where `cfg.w_soft` is above 0; training sets it. It is no part of the
            model: it is in no checkpoint, and no optimiser knows it.
    """

    decoder: LargeFOVDecoder
    teacher: Teacher | None = None

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.decoder = LargeFOVDecoder(
            self.encoder.num_features, cfg.decoder_width, cfg.num_classes + 1, cfg.decoder_dilation
        )
        self.train()

    def encode(self, image: Tensor) -> Tensor:
        """The final tokens of normalised images (B, 3, H, W), (B, D, h, w)."""
        check_images(image)
        self.check_input(image)
        image, grid = fill_patches(self.encoder, image)
        with self.autocast(image.device):
            if is_plain_vit(self.encoder):
                tokens = self.encoder.forward_features(image)[:, self.num_prefix_tokens :].mT.unflatten(2, grid)
            else:
                tokens, _ = stage_maps(self.encoder, image, [])
        return tokens.float()

    def cams(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """There are none.

        Raises:
            ValueError: Always.
        """
        raise ValueError("method 'supervised' has no CAM: it learns from masks. Take its segmentation, target seg")

    def forward(self, image: Tensor, *, segment: bool = True) -> Output:
        """Segmentation, and as image logits `class_margins`; both come from the decoder, with `segment` or without."""
        seg_logits = self.decoder(self.encode(image))
        return Output(logits=class_margins(seg_logits), seg_logits=seg_logits)

    def losses(self, batch: Batch, cfg: Config, step: int, *, generator: torch.Generator | None = None) -> StepOutput:
        """`seg_loss` with the masks of the batch, and with a teacher `soft_label_loss` at the resolution of tokens.

        With `cfg.w_consistency`, images without a mask have `consistency_loss` in its place.

        Raises:
            ValueError: If the batch has no masks, or soft labels are asked for and there is no teacher.
        """
        if batch.mask is None or (cfg.w_soft > 0 and self.teacher is None):
            what = "masks: make it with train_loader" if batch.mask is None else "teacher: Learner.of opens it"
            raise ValueError(f"a step of method 'supervised' has no {what}")
        if cfg.w_consistency > 0:
            return self._consistent_losses(batch, batch.mask, cfg, generator)
        logits = self.decoder(self.encode(batch.image))
        losses = {"seg": seg_loss(enlarge(logits, batch.mask.shape[-2:]), batch.mask)}
        weights = {"seg": cfg.w_seg}
        if cfg.w_soft > 0 and self.teacher is not None:
            grid = logits.shape[-2:]
            inside = inside_box(token_box(batch.valid_box, self.patch_size), *grid)
            target = resize(self.teacher(batch.image), grid)
            losses["soft"] = soft_label_loss(logits, target, inside, temperature=cfg.soft_temperature)
            weights["soft"] = cfg.w_soft
        return StepOutput(weighted_terms(losses, weights), pseudo_label=batch.mask)

    def _consistent_losses(
        self, batch: Batch, mask: Tensor, cfg: Config, generator: torch.Generator | None
    ) -> StepOutput:
        """The losses of a step in which some images have no mask.

        These pass twice: as they are, without gradient, and beside the images that have a mask as strong views.
        """
        places = range(len(batch.names))
        known, unknown = ([place for place in places if batch.known[place] is there] for there in (True, False))
        size = mask.shape[-2:]
        strong, label, inside = batch.local_source[:0], mask[:0], mask[:0].bool()
        if unknown:
            with torch.no_grad():
                weak = enlarge(self.decoder(self.encode(_those(batch.image, unknown))), size)
            box = _those(batch.valid_box, unknown)
            label = certain_label(weak, box, threshold=cfg.consistency_threshold)
            strong, label, inside = strong_view(_those(batch.local_source, unknown), label, box, generator=generator)
        logits = enlarge(self.decoder(self.encode(torch.cat([_those(batch.image, known), strong]))), size)
        of_masks, of_views = logits.split([len(known), len(unknown)])
        losses = {
            "seg": seg_loss(of_masks, _those(mask, known)),
            "consistency": consistency_loss(of_views, label, inside),
        }
        terms = weighted_terms(losses, {"seg": cfg.w_seg, "consistency": cfg.w_consistency})
        share = (label != IGNORE_INDEX).sum() / inside.sum()
        return StepOutput(replace(terms, certain_share=share), pseudo_label=mask)


def _those(tensor: Tensor, places: list[int]) -> Tensor:
    """Some images of a batch, by places on the host: a GPU is not waited for."""
    return torch.cat([tensor[:0], *(tensor[place : place + 1] for place in places)])
