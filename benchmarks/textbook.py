"""One training step of ToCo the plain way: what a reader would write straight from the paper, to measure ours against.

The same mathematics on the same model as `toco_lab.method.step`. Nothing is made to be slow, but nothing is shared
between the parts of a step either:

- CAM: the whole network, decoder included, on image and mirror image at every scale, though the tokens of the image
  itself are needed again below.
- CTC: both global views pass the encoder for the teacher without gradient, and they and the local views again for the
  student; the training image, which is the first of them, a third time for everything else. Exponentials as written.
- Refinement: image by image and once per background score, affinities included, neighbours by one-hot convolutions.
- Energy: image by image, one filter call per class, backward written by hand.
- PTC and crops: image by image.
- Attention written out, AdamW parameter by parameter, terms of weight 0 computed all the same.

`floor` is what remains if everything but the encoder were free.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toco_lab.backbones.kinds import encoder_of
from toco_lab.backbones.pixels import denormalise
from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.method.batch import Batch
from toco_lab.method.cam import Cams
from toco_lab.method.lattice import Lattice, bilateral_features
from toco_lab.method.losses import PtcTerms
from toco_lab.method.model import ToCo
from toco_lab.method.present import PresentClasses
from toco_lab.method.step import LOSSES, LocalViews, LossTerms, StepOutput, loss_weights
from toco_lab.training.optimiser import build_optimizer, set_learning_rate

PAPER = {  # what the workbench adds to the method is not done here
    "teacher": "ema", "w_distil": 0.0, "ptc_similarity": "absolute", "reg_gate": "released", "refine": True,
    "accumulate": 1, "high_threshold_end": None, "noise_start_step": None,
}  # fmt: skip


# --- the step ---------------------------------------------------------------------------------------------------------


def textbook_optimizer(model: ToCo, cfg: Config) -> torch.optim.AdamW:
    """AdamW as torch does it unasked on a CPU, one parameter after the other; the groups of `build_optimizer`."""
    optimizer = build_optimizer(model, cfg)
    for group in optimizer.param_groups:
        group["fused"] = False
    return optimizer


def textbook_step(
    model: ToCo,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    cfg: Config,
    step: int,
    *,
    views: LocalViews | None = None,
    generator: torch.Generator | None = None,
) -> StepOutput:
    """One optimiser step: the teacher first, then losses, backward, AdamW. Arguments as in `textbook_losses`."""
    set_learning_rate(optimizer, cfg, step)
    model.update_teacher()
    optimizer.zero_grad()
    output = textbook_losses(model, batch, cfg, step, views=views, generator=generator)
    output.terms.total.backward()
    optimizer.step()
    return output


def textbook_losses(
    model: ToCo,
    batch: Batch,
    cfg: Config,
    step: int,
    *,
    views: LocalViews | None = None,
    generator: torch.Generator | None = None,
) -> StepOutput:
    """All losses of one training step (steps 1 to 7 of `toco_lab.method`), in the order of the paper.

    Terms of weight 0 have their value here too, where `compute_losses` has 0.

    Args:
        model: A plain ViT in training mode; its attention is written out for the time of this call.
        batch: Normalised views, labels, boxes.
        cfg: Thresholds, weights and the quirks of the released code.
        step: 0-based; decides the weights and where the pseudo label comes from.
        views: Local views to use; None cuts them, at the places `compute_losses` would with the same generator.
        generator: For the positions of the local crops.

    Raises:
        ValueError: If `cfg` asks for what the workbench adds to the method, or the model is no plain ViT.
    """
    for name, value in PAPER.items():
        if getattr(cfg, name) != value:
            raise ValueError(f"the textbook step has {name} {value!r} only, got {getattr(cfg, name)!r}: replace it")
    with written_out_attention(encoder_of(model)):
        cams = multi_scale_cam(model, batch.image, cfg.cam_scales)
        region = region_masks(cams.cam_aux, batch.image_label, cfg)
        views = views or local_views(batch, region, cfg, generator)
        pixels = denormalise(batch.image, model.mean, model.std)
        label = pseudo_label(cams, pixels, batch, cfg, step)

        output = model(batch.image)
        teacher = teacher_projections(model, batch)
        student = student_projections(model, batch, views)

    tokens = output.features.patch_tokens
    token_label = token_labels(cams.cam_aux, batch, cfg, tokens.shape[-2:], model.patch_size)
    pairs = ptc_terms(tokens, token_label)
    logits = F.interpolate(output.seg_logits, pixels.shape[-2:], mode="bilinear", align_corners=False)
    terms = {
        "cls": F.multilabel_soft_margin_loss(output.logits, batch.image_label),
        "cls_aux": F.multilabel_soft_margin_loss(output.aux_logits, batch.image_label),
        "ptc": pairs.loss,
        "ctc": ctc_loss(student, teacher, views.flags, cfg.ctc_temperature, cfg.ctc_negative_only_term),
        "distil": output.logits.new_zeros(()),
        "seg": seg_loss(logits, label),
        "reg": reg_loss(logits, pixels, label, batch.valid_box, cfg),
    }
    weights = loss_weights(cfg, step)
    total = sum(weights[name] * terms[name] for name in LOSSES)
    losses = LossTerms(
        **terms, total=total, positive_cosine=pairs.positive_cosine, negative_cosine=pairs.negative_cosine,
        **crop_statistics(student.detach(), teacher, views.flags), noise_share=total.detach() * torch.nan,
    )  # fmt: skip
    return StepOutput(losses, cams, label, token_label, region, views)


@contextmanager
def written_out_attention(encoder: nn.Module) -> Iterator[None]:
    """softmax(Q K^T / sqrt(d)) V with the matrix of weights in memory, in place of torch's fused kernel."""
    fused = [part for part in encoder.modules() if getattr(part, "fused_attn", False)]
    for part in fused:
        part.fused_attn = False
    try:
        yield
    finally:
        for part in fused:
            part.fused_attn = True


# --- CAM and crops ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def multi_scale_cam(model: ToCo, image: Tensor, scales: Sequence[float]) -> Cams:
    """Step 1: at every scale the maximum of image and mirror image, ReLU; summed, then min-max normalised per map."""
    height, width = size = image.shape[-2:]
    cam, cam_aux = 0, 0
    for scale in scales:
        scaled = image
        if scale != 1:
            scaled = _resized(image, (int(scale * height), int(scale * width)))
        output = model(torch.cat([scaled, scaled.flip(-1)]))
        cam = cam + _flip_maximum(output.cam, size)
        cam_aux = cam_aux + _flip_maximum(output.cam_aux, size)
    every_class = PresentClasses.of(image.new_ones(output.logits.shape))
    return Cams(_min_max(cam), _min_max(cam_aux), every_class)


def _flip_maximum(raw: Tensor, size: Sequence[int]) -> Tensor:
    """Raw CAMs (2B, C, h, w), mirror images in the second half, to (B, C, H, W)."""
    straight, mirrored = _resized(raw, size).chunk(2)
    return F.relu(torch.maximum(straight, mirrored.flip(-1)))


def _min_max(cam: Tensor) -> Tensor:
    cam = cam - cam.amin((-2, -1), keepdim=True)
    return cam / (cam.amax((-2, -1), keepdim=True) + 1e-5)


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def region_masks(cam_aux: Tensor, image_label: Tensor, cfg: Config) -> Tensor:
    """Step 2: (B, H, W) int64, 0 background, 1 uncertain, 2 foreground."""
    score = (cam_aux * image_label[:, :, None, None]).amax(1)
    region = torch.ones_like(score, dtype=torch.int64)
    region[score <= cfg.low_threshold] = 0
    region[score >= cfg.high_threshold] = 2
    return region


def local_views(batch: Batch, region: Tensor, cfg: Config, generator: torch.Generator | None = None) -> LocalViews:
    """Step 2: crops around uncertain and background positions, image by image, with the kind of each."""
    size = cfg.local_crop_size
    count = [side - size for side in region.shape[-2:]]  # start rows and columns
    chance = torch.rand(len(region), count[0] * count[1], generator=generator) if cfg.ctc_between == "ignore" else None
    images, flags = [], []
    for i, (source, mask, box) in enumerate(zip(batch.local_source, region, batch.valid_box.tolist(), strict=True)):
        rows, columns = (list(range(starts)) for starts in count)
        if cfg.crops_in_valid_box:
            top, bottom, left, right = box
            rows, columns = _starts(top, bottom, size, count[0]), _starts(left, right, size, count[1])
        allowed = torch.zeros(count, dtype=torch.bool)
        allowed[torch.tensor(rows)[:, None], torch.tensor(columns)] = True
        kind, centre = _kinds(mask, count, cfg)
        if chance is None:
            corners = _any_candidates(centre, allowed, cfg, generator)
        else:
            corners = _both_kinds(kind, centre, allowed, chance[i].view(count), cfg)
        images.append(torch.stack([source[:, top : top + size, left : left + size] for top, left in corners]))
        kinds = torch.tensor([1.0, 1.0] + [float(kind[corner]) for corner in corners])  # global views first
        flags.append(kinds if batch.image_label[i].any() else torch.full_like(kinds, 255))
    return LocalViews(torch.stack(images, 1).flatten(0, 1), torch.stack(flags))


def _kinds(mask: Tensor, count: list[int], cfg: Config) -> tuple[Tensor, Tensor]:
    """Of the crop at each corner: 1 for a positive, 0 for a negative, 255 for one left out; and what it is centred on.

    What every crop shows comes from an integral image.
    """
    size, half = cfg.local_crop_size, cfg.local_crop_size // 2
    shown = (mask > 0 if cfg.crop_content == "area" else mask).double()
    sums = F.pad(shown.cumsum(0).cumsum(1), (1, 0, 1, 0))
    content = (sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]) / size**2
    content = content[: count[0], : count[1]].float()
    centre = mask[half : half + count[0], half : half + count[1]]
    if cfg.ctc_between == "negative":
        return (content > cfg.crop_min_content).float(), centre
    kind = torch.full_like(content, 255.0)
    kind[(centre == 1) & (content > cfg.crop_min_content)] = 1.0
    kind[(centre == 0) & (content <= cfg.crop_max_negative)] = 0.0
    return kind, centre


def _any_candidates(
    centre: Tensor, allowed: Tensor, cfg: Config, generator: torch.Generator | None
) -> list[tuple[int, int]]:
    """Corners of crops around candidates, whatever they show; of any crops where there are too few."""
    wanted = centre == 1 if cfg.crop_candidates == "uncertain" else centre < 2
    places = (wanted & allowed).nonzero().tolist()
    if len(places) < cfg.num_local_crops:
        places = allowed.nonzero().tolist()
    order = torch.randperm(len(places), generator=generator)[: cfg.num_local_crops].tolist()
    return [tuple(places[order[turn % len(order)]]) for turn in range(cfg.num_local_crops)]


def _both_kinds(kind: Tensor, centre: Tensor, allowed: Tensor, chance: Tensor, cfg: Config) -> list[tuple[int, int]]:
    """Corners of crops, half asking for positives, half for negatives: the best places of a random order."""
    chosen = []
    for asked, sign, number in ((1.0, -1, -(-cfg.num_local_crops // 2)), (0.0, 1, cfg.num_local_crops // 2)):
        rank = torch.where(kind == asked, 0.0, 1.0)
        rank[kind == 255] = 2.0
        rank[(kind == 255) & (centre >= 2)] = 3.0
        places = allowed.nonzero()
        best = (4 * rank.double() + sign * chance.double())[allowed].argsort(stable=True)[:number].tolist()
        chosen += [tuple(places[best[turn % len(best)]].tolist()) for turn in range(number)]
    return chosen


def _starts(begin: int, end: int, size: int, count: int) -> list[int]:
    """Starts of crops inside [begin, end) on one axis; where none fits, those that cover it; else all."""
    inside = [start for start in range(count) if begin <= start and start + size <= end]
    covering = [start for start in range(count) if start <= begin and end <= start + size]
    return inside or covering or list(range(count))


# --- class token contrast ---------------------------------------------------------------------------------------------


@torch.no_grad()
def teacher_projections(model: ToCo, batch: Batch) -> Tensor:
    """Step 3: the teacher's head of both global views, (2B, out), view-major."""
    tokens = [model.encode(view).class_token for view in (batch.image, batch.view2)]
    return model.teacher_head(torch.cat(tokens))


def student_projections(model: ToCo, batch: Batch, views: LocalViews) -> Tensor:
    """Step 3: the student's head of both global and the n local views, ((2 + n) B, out), view-major."""
    tokens = [model.encode(view).class_token for view in (batch.image, batch.view2, views.image)]
    return model.projection_head(torch.cat(tokens))


def ctc_loss(student: Tensor, teacher: Tensor, flags: Tensor, temperature: float, negative_only_term: bool) -> Tensor:
    """Step 3: InfoNCE with one term per image, teacher view and positive."""
    batch = len(flags)
    losses = []
    for i, kinds in enumerate(flags.tolist()):
        total = 0
        for target in teacher[i::batch]:
            similarity = [torch.exp(target @ view / temperature) for view in student[i::batch]]
            negative = sum((e for e, kind in zip(similarity, kinds, strict=True) if kind == 0), student.new_zeros(()))
            for e, kind in zip(similarity, kinds, strict=True):
                if kind == 1:
                    total = total - torch.log(e / (e + negative + 1e-4))
            if negative_only_term:
                total = total - torch.log(1 / (1 + negative + 1e-4))
        losses.append(total / len(teacher[i::batch]) / (kinds.count(1) + 1e-4))
    return torch.stack(losses).mean()


def crop_statistics(student: Tensor, teacher: Tensor, flags: Tensor) -> dict[str, Tensor]:
    """How alike the teacher's global views are to the local crops of each kind, and the shares of the kinds."""
    batch, cosines = len(flags), {1: [], 0: [], 255: []}
    for i, kinds in enumerate(flags[:, 2:].tolist()):
        for kind, crop in zip(kinds, student[i::batch][2:], strict=True):
            cosines[kind] += [F.cosine_similarity(view, crop, dim=0) for view in teacher[i::batch]]
    total = sum(len(found) for found in cosines.values())
    named = zip(("positive", "negative", "ignored"), cosines.values(), strict=True)
    found = {}
    for name, values in named:
        found[f"ctc_{name}_share"] = student.new_tensor(len(values) / total)
        if name != "ignored":
            found[f"ctc_{name}_cosine"] = torch.stack(values).mean() if values else student.new_tensor(torch.nan)
    return found


# --- patch token contrast ---------------------------------------------------------------------------------------------


def token_labels(cam_aux: Tensor, batch: Batch, cfg: Config, grid: Sequence[int], patch_size: int) -> Tensor:
    """Step 4: (B, h, w) int64, 0 background, 1..C classes, 255 ignored."""
    labels = []
    for cam, present, box in zip(cam_aux, batch.image_label, batch.valid_box.tolist(), strict=True):
        score, label = (_resized(cam[None], grid)[0] * present[:, None, None]).max(0)
        label = label + 1
        label[score <= cfg.high_threshold] = IGNORE_INDEX
        label[score <= cfg.low_threshold] = 0
        if cfg.ptc_box_units == "tokens":  # tokens wholly inside
            top, bottom, left, right = box
            box = math.ceil(top / patch_size), bottom // patch_size, math.ceil(left / patch_size), right // patch_size
        labels.append(_ignored_outside(label, box))
    return torch.stack(labels)


def _ignored_outside(label: Tensor, box: Sequence[int]) -> Tensor:
    """`label` (H, W) with 255 outside its box."""
    top, bottom, left, right = box
    kept = torch.full_like(label, IGNORE_INDEX)
    kept[top:bottom, left:right] = label[top:bottom, left:right]
    return kept


def ptc_terms(patch_tokens: Tensor, token_label: Tensor) -> PtcTerms:
    """Step 4: |cos| of all pairs of tokens of an image; the pairs of the whole batch are pooled."""
    sums, counts = [0, 0], [0, 0]  # of negative and of positive pairs
    for tokens, label in zip(patch_tokens.flatten(2), token_label.flatten(1), strict=True):
        unit = F.normalize(tokens, dim=0, eps=1e-8)  # (D, N)
        similarity = (unit.t() @ unit).abs()
        known = label != IGNORE_INDEX
        pairs = known[:, None] & known & ~torch.eye(len(label), dtype=torch.bool, device=label.device)
        same = label[:, None] == label
        for kind, chosen in enumerate((pairs & ~same, pairs & same)):
            sums[kind] = sums[kind] + (similarity * chosen).sum()
            counts[kind] = counts[kind] + chosen.sum()
    loss = 0.5 * (1 - sums[1] / (counts[1] + 1)) + 0.5 * sums[0] / (counts[0] + 1)
    return PtcTerms(loss, sums[1].detach() / counts[1], sums[0].detach() / counts[0])


# --- pseudo label and segmentation ------------------------------------------------------------------------------------


@torch.no_grad()
def pseudo_label(cams: Cams, pixels: Tensor, batch: Batch, cfg: Config, step: int) -> Tensor:
    """Step 5: (B, H, W) int64, 0 background, 1..C classes, 255 ignored; PAR twice for every image."""
    cam = cams.cam_aux if step < cfg.aux_label_steps else cams.cam
    labels = []
    for image, scores, present, box in zip(pixels, cam, batch.image_label, batch.valid_box.tolist(), strict=True):
        height, width = size = image.shape[-2:]
        half = height // 2, width // 2
        image = _resized((image.clamp(0, 255).byte().float() / 255)[None], half)  # PAR sees whole grey levels
        classes = present.nonzero().flatten()
        ids = torch.cat([classes.new_zeros(1), classes + 1])
        high, low = (
            ids[_refined(image, scores[classes], background, cfg, half, size).argmax(0)]
            for background in (cfg.high_threshold, cfg.low_threshold)
        )
        label = torch.where((high == 0) & (low != 0), IGNORE_INDEX, high)
        labels.append(_ignored_outside(label, box))
    return torch.stack(labels)


def _refined(
    image: Tensor, scores: Tensor, background: float, cfg: Config, half: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Scores of the present classes (S, H, W) beside a constant background, refined by PAR: (1 + S, H, W)."""
    scores = torch.cat([image.new_full((1, *size), background), scores])
    masks = _resized(scores[None], half).softmax(1)
    return _resized(par(image, masks, cfg.par_dilations, cfg.par_iterations), size)[0]


@torch.no_grad()
def par(image: Tensor, masks: Tensor, dilations: Sequence[int], num_iter: int) -> Tensor:
    """Pixel-adaptive refinement of (B, C, h, w) by an image (B, 3, h, w) in 0..1; see `toco_lab.refine`."""
    near = _neighbours(image, dilations)  # (B, 3, n, h, w)
    affinity = -(((near - image[:, :, None]) / (near.std(2, keepdim=True) + 1e-8) / 0.3) ** 2)
    distance = torch.tensor([d * math.hypot(y, x) for d in dilations for y, x in _DIRECTIONS])
    position = -((distance / (distance.std() + 1e-8) / 0.3) ** 2)
    weights = affinity.mean(1).softmax(1) + 0.01 * position.softmax(0)[:, None, None].to(image)  # (B, n, h, w)
    for _ in range(num_iter):
        masks = (weights[:, None] * _neighbours(masks, dilations)).sum(2)
    return masks


_DIRECTIONS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]


def _neighbours(maps: Tensor, dilations: Sequence[int]) -> Tensor:
    """(B, C, h, w) -> (B, C, n, h, w): the eight neighbours at each dilation, by convolution with one-hot kernels."""
    kernels = maps.new_zeros(8, 1, 3, 3)
    for number, (y, x) in enumerate(_DIRECTIONS):
        kernels[number, 0, 1 + y, 1 + x] = 1
    channels = maps.flatten(0, 1)[:, None]
    found = [F.conv2d(F.pad(channels, (d,) * 4, mode="replicate"), kernels, dilation=d) for d in dilations]
    return torch.cat(found, 1).unflatten(0, maps.shape[:2])


def seg_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Step 6: half the cross entropy of background pixels, half that of foreground pixels; an empty half is 0."""
    background = label.masked_fill(label != 0, IGNORE_INDEX)
    foreground = label.masked_fill(label == 0, IGNORE_INDEX)
    loss = 0 * logits.sum()
    for half in (background, foreground):
        if (half != IGNORE_INDEX).any():
            loss = loss + 0.5 * F.cross_entropy(logits, half, ignore_index=IGNORE_INDEX)
    return loss


def reg_loss(logits: Tensor, pixels: Tensor, label: Tensor, valid_box: Tensor, cfg: Config) -> Tensor:
    """Step 6: dense CRF energy on half-size maps."""
    scale, inside = cfg.reg_scale, torch.zeros_like(pixels[:, :1])
    for mask, (top, bottom, left, right) in zip(inside, valid_box.tolist(), strict=True):
        mask[:, top:bottom, left:right] = 1
    ignored = (label == IGNORE_INDEX)[:, None].to(pixels.dtype)
    pred = F.interpolate(logits.softmax(1), scale_factor=scale, mode="bilinear", align_corners=False)
    small = [F.interpolate(maps, scale_factor=scale, mode="nearest") for maps in (pixels, inside, ignored)]
    return DenseEnergy.apply(pred, *small, cfg.reg_sigma_xy * scale, cfg.reg_sigma_rgb, cfg.reg_scale_factor)


class DenseEnergy(torch.autograd.Function):
    """The energy and its released gradient, written by hand: gate constant, filter symmetric."""

    @staticmethod
    def forward(
        ctx, pred: Tensor, image: Tensor, inside: Tensor, ignored: Tensor, sigma_xy: float, sigma_rgb: float,
        weight: float,
    ) -> Tensor:  # fmt: skip
        """Class probabilities (B, K, h, w), image (B, 3, h, w) in 0..255, inside and ignored (B, 1, h, w) -> scalar."""
        gated = torch.empty_like(pred)
        for i in range(len(pred)):
            lattice = Lattice(bilateral_features(image[i : i + 1], sigma_xy, sigma_rgb))
            gate = torch.where(ignored[i, 0] > 0, 1, inside[i, 0] - pred[i].amax(0)).clamp(min=0)
            for k in range(pred.shape[1]):
                values = (pred[i, k] * inside[i, 0]).view(1, 1, -1)
                gated[i, k] = lattice.filter(values).view_as(gate) * gate
        ctx.factor = -weight / len(pred)
        ctx.save_for_backward(gated * inside)
        return ctx.factor * (pred * inside * gated).sum()

    @staticmethod
    def backward(ctx, slope: Tensor) -> tuple[Tensor | None, ...]:
        """Twice the filtered side."""
        (gated,) = ctx.saved_tensors
        return 2 * ctx.factor * slope * gated, None, None, None, None, None, None


# --- the floor --------------------------------------------------------------------------------------------------------


def floor(model: ToCo, batch: Batch, cfg: Config, local_images: Tensor) -> None:
    """The encoder passes no step can do without, as timm runs them, forward and backward; gradients stay behind.

    Without gradient: the mirror image, and image and mirror image at the other scales, for the CAM. With it: training
    image, second global view and local views, all in memory until one backward, as CTC couples them.

    Args:
        model: A plain ViT.
        batch: Normalised views.
        cfg: For the scales.
        local_images: (n*B, 3, c, c).

    Raises:
        ValueError: If the model is no plain ViT.
    """
    encoder = encoder_of(model)
    encoder.zero_grad()
    with torch.no_grad():
        encoder.forward_features(batch.image.flip(-1))
        for scale in cfg.cam_scales[1:]:
            scaled = _resized(batch.image, [int(scale * length) for length in batch.image.shape[-2:]])
            encoder.forward_features(torch.cat([scaled, scaled.flip(-1)]))
    views = batch.image, batch.view2, local_images
    torch.stack([encoder.forward_features(view).sum() for view in views]).sum().backward()
