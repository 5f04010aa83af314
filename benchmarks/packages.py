"""Beside what one would use instead: the same maps and scores by other packages, or by the hooks of public scripts.

Both take turns on the same model and images, and what they give is compared:

- Grad-CAM of the usual layer, as maps of the size of the image, by pytorch-grad-cam in batches;
- attention rollout, by a forward hook behind every attention and a product of matrices, as public scripts do;
- the mean absolute cosine of patch tokens behind every block, by a forward hook on every block;
- mIoU over many masks, by the Jaccard index of torchmetrics.

Random weights, one thread, processor seconds. pytorch-grad-cam is no part of the installation: `pip install grad-cam`.
No package with a dense CRF can be built for a current Python (pydensecrf, SimpleCRF), so there is none to compare with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import ratio, rounds
from benchmarks.run import Case, markdown_table
from toco_lab.attribution.attention import rollout
from toco_lab.attribution.catalogue import ATTRIBUTIONS
from toco_lab.data.toy import make_scene
from toco_lab.evaluation.scores import confusion_matrix, iou_scores
from toco_lab.smoothing.per_layer import smoothing_per_layer
from toco_lab.vocabulary import MEAN_ABSOLUTE_COSINE

FORWARD, OURS, THEIRS = "forward pass", "ours", "theirs"
GRAD_CAM, ROLLOUT, COSINE, MIOU = "Grad-CAM", "attention rollout", "mean absolute cosine of every block", "mIoU"


@dataclass(frozen=True)
class Setting:
    """timm's name of a ViT, the side of the images, how many there are, and how many masks are scored."""

    name: str
    side: int
    images: int = 32
    batch: int = 8
    masks: int = 1000


SETTINGS = {"deit_tiny": Setting("deit_tiny_patch16_224", 224), "vit_b": Setting("vit_base_patch16_224", 224, images=8)}


def make_subject(setting: Setting) -> tuple[nn.Module, list[Tensor]]:
    """A classifier with random weights, and batches (B, 3, H, W) of normalised scenes."""
    torch.manual_seed(0)
    model = timm.create_model(setting.name, pretrained=False, dynamic_img_size=True).eval()
    scenes = [make_scene(0, index, size=setting.side).image for index in range(setting.images)]
    images = torch.stack([torch.from_numpy(scene) for scene in scenes]).permute(0, 3, 1, 2).float() / 127.5 - 1
    return model, list(images.split(setting.batch))


# --- theirs -----------------------------------------------------------------------------------------------------------


def their_grad_cam(model: nn.Module, batches: list[Tensor], class_index: int) -> Tensor:
    """Maps (n, H, W) in [0, 1] by pytorch-grad-cam."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def as_map(tokens: Tensor) -> Tensor:
        side = int((tokens.shape[1] - 1) ** 0.5)
        return tokens[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)

    with GradCAM(model=model, target_layers=[model.blocks[-1].norm1], reshape_transform=as_map) as cam:
        maps = [
            cam(input_tensor=images, targets=[ClassifierOutputTarget(class_index)] * len(images)) for images in batches
        ]
    return torch.cat([torch.from_numpy(one) for one in maps])


@torch.no_grad()
def their_rollout(model: nn.Module, batches: list[Tensor]) -> Tensor:
    """Maps (n, h, w): attention of every block kept by a hook, (A + I) / 2 multiplied layer by layer."""
    seen: list[Tensor] = []
    hooks = [block.attn.attn_drop.register_forward_hook(lambda _, __, out: seen.append(out)) for block in model.blocks]
    fused = [block.attn.fused_attn for block in model.blocks]
    maps = []
    for block in model.blocks:
        block.attn.fused_attn = False
    for images in batches:
        seen.clear()
        model(images)
        joint = torch.eye(seen[0].shape[-1]).expand(len(images), -1, -1)
        for attention in seen:
            layer = attention.mean(1) + torch.eye(attention.shape[-1])
            joint = layer / layer.sum(-1, keepdim=True) @ joint
        side = int((joint.shape[-1] - 1) ** 0.5)
        maps.append(joint[:, 0, 1:].unflatten(1, (side, side)))
    for hook, block, was in zip(hooks, model.blocks, fused, strict=True):
        hook.remove()
        block.attn.fused_attn = was
    return torch.cat(maps)


@torch.no_grad()
def their_cosines(model: nn.Module, batches: list[Tensor]) -> Tensor:
    """(blocks,) mean over the images of the mean |cosine| of two patch tokens."""
    seen: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, out: seen.append(out[:, 1:])) for block in model.blocks]
    found = []
    for images in batches:
        seen.clear()
        model(images)
        for tokens in seen:
            unit = F.normalize(tokens, dim=-1)
            cosines = (unit @ unit.transpose(1, 2)).abs()
            count = cosines.shape[-1]
            found.append((cosines.sum((1, 2)) - count) / (count * (count - 1)))
    for hook in hooks:
        hook.remove()
    return torch.stack(found).unflatten(0, (len(batches), -1)).transpose(0, 1).flatten(1).mean(1)


def their_miou(masks: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean IoU over 21 classes by torchmetrics, a mask at a time; 255 is left out."""
    from torchmetrics.classification import MulticlassJaccardIndex

    metric = MulticlassJaccardIndex(21, ignore_index=255)
    for prediction, truth in masks:
        metric.update(prediction, truth)
    return metric.compute()


# --- ours -------------------------------------------------------------------------------------------------------------


def our_cosines(model: nn.Module, batches: list[Tensor]) -> Tensor:
    """(blocks,) the same from `smoothing_per_layer`, which measures all variants of the metric, in double precision."""
    name, variant = MEAN_ABSOLUTE_COSINE
    images = [image for one in batches for image in one]
    frame = smoothing_per_layer(model, images, metrics=[name], sites=["after block"], name="benchmark")
    return torch.tensor(frame[frame["variant"] == variant].groupby("layer")["value"].mean().to_list())


def our_miou(masks: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The same from the matrix that every evaluation adds up."""
    return iou_scores(torch.stack([confusion_matrix(*pair, 21) for pair in masks]).sum(0)).miou.float()


def make_masks(count: int) -> list[tuple[Tensor, Tensor]]:
    """Pairs of label maps (375, 500) with 21 classes: a truth with a margin of 255, and a prediction with errors."""
    generator = torch.Generator().manual_seed(0)
    truths = torch.randint(0, 21, (8, 15, 20), generator=generator).repeat_interleave(25, 1).repeat_interleave(25, 2)
    wrong = torch.randint(0, 21, truths.shape, generator=generator)
    predictions = torch.where(torch.rand(truths.shape, generator=generator) < 0.3, wrong, truths)
    truths[:, :5] = 255
    return [(predictions[i % 8], truths[i % 8]) for i in range(count)]


def make_calls(setting: Setting) -> dict[tuple[str, str], Callable[[], Any]]:
    """What takes turns: (what, whose) -> call."""
    model, batches = make_subject(setting)
    masks = make_masks(setting.masks)

    @torch.no_grad()
    def forward() -> None:
        for images in batches:
            model(images)

    return {
        (FORWARD, ""): forward,
        (GRAD_CAM, OURS): lambda: torch.cat([ATTRIBUTIONS[GRAD_CAM](model, images, 3) for images in batches]),
        (GRAD_CAM, THEIRS): lambda: their_grad_cam(model, batches, 3),
        (ROLLOUT, OURS): lambda: torch.cat([rollout(model, images) for images in batches]),
        (ROLLOUT, THEIRS): lambda: their_rollout(model, batches),
        (COSINE, OURS): lambda: our_cosines(model, batches),
        (COSINE, THEIRS): lambda: their_cosines(model, batches),
        (MIOU, OURS): lambda: our_miou(masks),
        (MIOU, THEIRS): lambda: their_miou(masks),
    }


def measure(setting: Setting, repeats: int) -> pd.DataFrame:
    """A row per thing: seconds of ours, theirs to ours, ours in forward passes, largest difference of the results."""
    calls = make_calls(setting)
    seconds = rounds(calls, repeats)
    forward, rows = (FORWARD, ""), []
    for what in dict.fromkeys(what for what, whose in calls if whose):
        ours, theirs = (what, OURS), (what, THEIRS)
        rows.append(
            {
                "what": what,
                "seconds": seconds[ours].median(),
                "to_ours": ratio(seconds, theirs, ours),
                "to_forward": ratio(seconds, ours, forward) if what != MIOU else None,
                "difference": (calls[ours]() - calls[theirs]()).abs().max().item(),
            }
        )
    sizes = f"{setting.name}, {setting.images} images of {setting.side} px in batches of {setting.batch}"
    return pd.DataFrame(rows).assign(sizes=f"{sizes}; {setting.masks} masks of 375 x 500")


def section(rows: pd.DataFrame) -> list[str]:
    """One table."""
    cells = [
        [
            row.what, f"{row.seconds:.2f}", f"{row.to_ours:.2f}",
            "-" if pd.isna(row.to_forward) else f"{row.to_forward:.2f}", f"{row.difference:.0e}",
        ]
        for row in rows.itertuples()
    ]  # fmt: skip
    heading = ["", "ours, seconds", "theirs, x ours", "ours, forward passes", "largest difference"]
    return [f"{rows['sizes'].iloc[0]}.", "", *markdown_table(heading, cells)]


def missing() -> str:
    """What this machine lacks for it."""
    try:
        import pytorch_grad_cam  # noqa: F401
    except ImportError:
        return "pytorch-grad-cam: pip install grad-cam"
    return ""


CASE = Case(
    about="The same by other packages, or by hooks as in public scripts: in turns on the same model and images.\n"
    "Medians over rounds of processor seconds, one thread, random weights.",
    settings=SETTINGS, measure=measure, section=section, default=("deit_tiny",), missing=missing,
)  # fmt: skip
