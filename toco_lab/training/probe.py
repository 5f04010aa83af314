"""Linear probing: classifiers that know the classes of the pretrained tokens before the encoder moves.

Random heads send random gradients into a pretrained encoder; with few images its last tokens then become one vector
within some steps. Probe first, fine-tune then: Kumar et al., "Fine-Tuning can Distort Pretrained Features", ICLR 2022.
"""

import functools

import torch
from torch import Tensor, nn

from toco_lab.config import Config
from toco_lab.data.loader import eval_samples
from toco_lab.method.cam import at_evaluation_size
from toco_lab.method.face import CamModel, HasLinearHeads
from toco_lab.method.losses import classification_loss
from toco_lab.progress import progress_bar

FIT_STEPS, FIT_RATE = 300, 0.02  # of full-batch AdamW: enough for the loss to settle on a few hundred images


@torch.no_grad()
def probe_classifiers(model: CamModel, cfg: Config, *, progress: bool = True) -> None:
    """Give the classifiers of a model the weights that a linear probe of its tokens finds; nothing else changes.

    Every training image is read once, whole, at `cfg.eval_cam_size`, without augmentation; no mask is. There is no
    randomness in it.

    Args:
        model: As training starts it, of a method that reads `probe_heads`; its mode is left alone.
        cfg: Names the training images.
        progress: Show a progress bar.

    Raises:
        DataError: See `open_dataset`.
        ValueError: If a training image has no label; it is named.
    """
    assert isinstance(model, HasLinearHeads)  # a Config refuses `probe_heads` of other methods
    samples = eval_samples(cfg.replace(val_images=0), model.mean, model.std, cfg.train_split)
    device = next(model.parameters()).device
    read: list[list[tuple[nn.Conv2d, Tensor]]] = []
    labels: list[Tensor] = []
    for sample in progress_bar(iter(samples), "probe", len(samples), shown=progress):
        if sample.image_label is None:
            raise ValueError(f"{sample.name} has no image label, so no classifier can be fitted: probe_heads=False")
        image = at_evaluation_size(sample.image[None].to(device), cfg.eval_cam_size)
        read.append(model.linear_heads(image))
        labels.append(sample.image_label)
    label = torch.stack(labels).to(device)
    for of_images in zip(*read, strict=True):
        head = of_images[0][0]
        fitted = fit_heads(torch.cat([pooled for _, pooled in of_images]).flatten(1)[None], label)[0]
        head.weight.copy_(fitted[:, :, None, None])


def fit_heads(pooled: Tensor, labels: Tensor) -> Tensor:
    """A linear multi-label classifier without bias for every layer, all trained at once from zero.

    Args:
        pooled: Pooled tokens of the training images, (L, n, D).
        labels: Image labels, (n, C) in {0, 1}.

    Returns:
        (L, C, D), to be applied to raw tokens: the channel scales are folded in.
    """
    scale = pooled.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)  # (L, 1, D)
    inputs = (pooled / scale).detach()
    heads = torch.zeros(len(pooled), labels.shape[1], pooled.shape[2], device=pooled.device, requires_grad=True)
    optimizer = torch.optim.AdamW([heads], lr=FIT_RATE, weight_decay=0.01)
    with torch.enable_grad():
        for _ in range(FIT_STEPS):
            logits = inputs @ heads.transpose(1, 2)  # (L, n, C)
            loss = functools.reduce(torch.add, [classification_loss(layer, labels) for layer in logits])
            optimizer.zero_grad()
            loss.backward(inputs=[heads])
            optimizer.step()
    return heads.detach() / scale
