"""What a training run will take, before it is started: arithmetic and memory counted, speed measured with one pass.

The passes of a step are made with tensors that have shapes but no numbers (torch's FakeTensorMode), so a ViT-B at 448
pixels is counted within seconds on any machine.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from toco_lab.backbones.kinds import blocks_of
from toco_lab.config import Config
from toco_lab.method.face import CamModel
from toco_lab.method.model import ToCo, ToCoOutput
from toco_lab.peers.build import build_model

ATTENTION = {  # of shapes; torch 2.11 does not count attention on the CPU
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4])
    ),
}
OPTIMIZER_COPIES = 3  # a gradient and AdamW's two moments beside each trained weight


@dataclass(frozen=True)
class StepCost:
    """One optimiser step in one process.

    Attributes:
        parameters: Weights of encoder and heads, the teacher's included.
        flops: Floating-point operations of all encoder passes, forward and backward.
        weight_bytes: Weights, gradients and moments.
        activation_bytes: What the backward pass of one micro-batch keeps, all losses switched on.
        pass_flops: Of one image through the encoder once, forward.
    """

    parameters: int
    flops: float
    weight_bytes: int
    activation_bytes: int
    pass_flops: float

    @property
    def memory_bytes(self) -> int:
        """Memory a step needs at least."""
        return self.weight_bytes + self.activation_bytes


def step_cost(cfg: Config, *, processes: int = 1) -> StepCost:
    """Count the arithmetic and the memory of a step.

    This counts the encoder passes (main view and its mirror image, the other CAM scales of both, second global view,
    local crops), the decoder, and the largest maps of the losses. Refinement and energy need little and are left out.

    Args:
        cfg: Sizes, batch, precision, weights of the losses.
        processes: Processes that share the batch.
    """
    images = cfg.batch_size // cfg.accumulate
    contrast, segment = max(cfg.w_ptc, cfg.w_ctc, cfg.w_distil) > 0, max(cfg.w_seg, cfg.w_reg) > 0
    model = build_model(cfg).train()
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        _make_fake(model, fake)
        trained = [p for p in model.parameters() if p.requires_grad]
        with _operations() as one_pass, torch.no_grad():
            model.encode(_view(1, cfg.crop_size))
        kept = _Kept(model)
        with _operations() as with_gradient, kept:
            loss = _stand_in_loss(model, cfg, images, segment)
            torch.autograd.grad(loss, trained, allow_unused=True)
        with _operations() as without_gradient, torch.no_grad():
            if contrast or segment:
                model.encode(_view(images, cfg.crop_size))  # the mirror image: the pass at scale 1 is shared
                for scale in cfg.cam_scales[1:]:
                    model.encode(_view(2 * images, int(scale * cfg.crop_size)))
    grid = (cfg.crop_size // model.patch_size) ** 2
    # cosines of all pairs of tokens, their absolute value and the masks; CAMs and logits at full size, with gradient
    pairs = 4 * images * grid**2 * (8 if cfg.ptc_across_frames else 4) if cfg.w_ptc > 0 else 0
    segmented = 7 if cfg.w_temporal > 0 else 4 * segment  # beside the labels' losses: both frames and their difference
    maps = 4 * images * cfg.crop_size**2 * (2 * cfg.num_classes * contrast + (cfg.num_classes + 1) * segmented)
    weights = sum(p.numel() for p in model.parameters())
    micro_batches = cfg.accumulate // processes
    return StepCost(
        parameters=weights,
        flops=micro_batches * (with_gradient.get_total_flops() + without_gradient.get_total_flops()),
        weight_bytes=4 * (weights + OPTIMIZER_COPIES * sum(p.numel() for p in trained)),
        activation_bytes=kept.bytes + pairs + maps,
        pass_flops=one_pass.get_total_flops(),
    )


def _operations() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=ATTENTION)


def _make_fake(model: CamModel, fake: FakeTensorMode) -> None:
    """Replace each weight by one that has a shape but no numbers."""
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(fake.from_tensor(p.detach()), p.requires_grad))


def _view(count: int, side: int) -> Tensor:
    return torch.empty(count, 3, side, side)


def _stand_in_loss(model: CamModel, cfg: Config, images: int, segment: bool) -> Tensor:
    """A scalar that depends on all outputs of a step that get a gradient, through the passes that a step makes."""
    output = model(_view(images, cfg.crop_size), segment=segment)
    loss = output.logits.sum()
    if isinstance(output, ToCoOutput):
        loss = loss + output.aux_logits.sum()
    if output.seg_logits is not None:
        loss = loss + output.seg_logits.sum()
    if isinstance(model, ToCo) and cfg.w_ctc > 0:
        crops = _view(images * cfg.num_local_crops, cfg.local_crop_size)
        for view in (_view(images, cfg.view2_side), crops):
            loss = loss + model.encode_class_token(view).sum()
    return loss


def measured_rate(cfg: Config, device: torch.device, *, cost: StepCost) -> float:
    """Floating-point operations a second of this device.

    One image passes through the encoder twice, and the second pass is timed: the first one also warms up.

    Args:
        cfg: Sizes of the model and the image.
        device: Where the passes are made.
        cost: What `step_cost` gives for `cfg`.
    """
    model = build_model(cfg).to(device).eval()
    image = torch.zeros(1, 3, cfg.crop_size, cfg.crop_size, device=device)
    with torch.no_grad():
        for _ in range(2):
            began = time.perf_counter()
            model(image, segment=False).logits.sum().item()
            seconds = time.perf_counter() - began
    return cost.pass_flops / seconds


class _Kept(saved_tensors_hooks):
    """Counts the bytes that autograd keeps for the backward pass, each storage once, weights left out."""

    def __init__(self, model: CamModel) -> None:
        self._storages: dict[int, tuple[Tensor, int]] = {}
        self._weights = {p.untyped_storage()._cdata for p in model.parameters()}
        super().__init__(self._pack, lambda kept: kept)
        if model.checkpoint_blocks:  # the input of each block is what remains
            for block in blocks_of(model.encoder):
                block.register_forward_pre_hook(lambda _, inputs: self._note(inputs[0]))

    def _pack(self, kept: Tensor) -> Tensor:
        self._note(kept)
        return kept

    def _note(self, kept: Tensor) -> None:
        storage = kept.untyped_storage()
        if storage._cdata not in self._weights:
            self._storages[storage._cdata] = kept, storage.nbytes()  # the tensor is held, or its place is used again

    @property
    def bytes(self) -> int:
        """The sum so far."""
        return sum(size for _, size in self._storages.values())
