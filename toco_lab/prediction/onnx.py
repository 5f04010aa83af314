"""A trained run as one ONNX file: what the network says of images, for programs that have no torch.

    exported = export_onnx(RunDir("results/demo/toco"), "model.onnx")

The graph holds one pass of encoder, classifiers and decoder, at one scale and without a mirror image; normalisation is
part of it. Thresholds, several scales, refinement and CRF are not: `evaluate` and `predict` have them.
"""

import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from toco_lab.backbones.kinds import is_plain_vit
from toco_lab.backbones.pixels import normalise
from toco_lab.backbones.weights import weights_hash
from toco_lab.config import Config
from toco_lab.data.classes import class_names
from toco_lab.data.toy import make_scene
from toco_lab.files import atomic_write, check_writable, require
from toco_lab.method.model import ToCo
from toco_lab.prediction.recipe import why_no_decoder
from toco_lab.runs.environment import version_of
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model

OUTPUTS = {  # name -> its axes and what it holds, in the order of the graph
    "scores": (("batch", "class"), "0 to 1 for each class; the image shows those above 0.5"),
    "cam": (("batch", "class", "row", "column"), "raw class activation maps of the final patch tokens, without ReLU"),
    "cam_aux": (("batch", "class", "aux_row", "aux_column"), "the same of the auxiliary patch tokens"),
    "class_token": (("batch", "channel"), "after the final norm; the mean of the patches where there is none"),
    "patch_tokens": (("batch", "channel", "row", "column"), "after the final norm"),
    "seg_logits": (("batch", "label", "row", "column"), "segmentation logits; label 0 is background"),
}
TOLERANCE = 1e-3  # largest difference from torch that is accepted, as a share of an output's largest value
MOST_BYTES = 2_000_000_000  # an ONNX file is one protobuf message


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        outputs: Names of the graph's outputs, in their order.
        size: Side in pixels of the square images that the graph takes; None if it takes any.
        differences: Output -> its largest difference from torch on toy scenes, as a share of the output's largest
            value; empty if onnxruntime is not installed.
    """

    path: Path
    outputs: tuple[str, ...]
    size: int | None
    differences: dict[str, float]

    def __str__(self) -> str:
        taken = "any size" if self.size is None else f"{self.size} x {self.size} pixels"
        said = f"{self.path}: images of {taken}, any number at a time; outputs {', '.join(self.outputs)}"
        if not self.differences:
            return f"{said}\nnot checked: onnxruntime is not installed (pip install 'toco_lab[onnx]')"
        worst = max(self.differences.values())
        return (
            f"{said}\nchecked with onnxruntime: differs from torch by {worst:.1e} of an output's largest value at most"
        )


class _Graph(nn.Module):
    """The network as it is exported: grey levels in, the tensors of `OUTPUTS` out."""

    def __init__(self, model: ToCo, *, segment: bool) -> None:
        super().__init__()
        self.model, self.segment = model, segment
        model.precision = "fp32"

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Grey levels 0..255, (B, 3, H, W) float32."""
        found = self.model(normalise(image, self.model.mean, self.model.std), segment=self.segment)
        tokens = found.features
        outputs = (found.logits.sigmoid(), found.cam, found.cam_aux, tokens.class_token, tokens.patch_tokens)
        return outputs if found.seg_logits is None else (*outputs, found.seg_logits)


def export_onnx(run: RunDir, out: Path | str, *, size: int | None = None) -> Exported:
    """Write the last checkpoint of a run as an ONNX file, after comparing it with torch where onnxruntime is installed.

    The graph has one input, `image`: RGB grey levels 0..255 as float32, (B, 3, H, W), any B. Its outputs are those of
    `OUTPUTS`; `seg_logits` only where the run has trained the decoder. Its metadata has the names of the classes, mean
    and standard deviation (which the graph itself applies), patch size, checkpoint hash and the config of the run.

    Args:
        run: A trained run.
        out: The file, .onnx.
        size: Side of the square images that the graph takes. None lets a plain ViT take any H and W; a model in stages
            (Swin, ResNet, ConvNeXt) then takes images of the size of its evaluation.

    Raises:
        ValueError: If onnx or onnxscript is missing, `out` does not end in .onnx, `size` is no multiple of the patch
            size, or the network cannot be exported, is too large for one file, or differs from torch by more than
            `TOLERANCE`. No file is written then.
        CheckpointError: If the run has no checkpoint, or it is damaged.
        OSError: If the file cannot be written.
    """
    require(run, RunDir, "run", ": open one with RunDir(folder)")
    out = Path(out)
    if out.suffix != ".onnx":
        raise ValueError(f"out must end in .onnx, got {out}")
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise ValueError(f"an export needs the package {missing[0]}; install it with: pip install 'toco_lab[onnx]'")
    check_writable(out)
    model, cfg = load_run_model(run)
    if not isinstance(model, ToCo):
        raise ValueError(f"{run.path} is of method {cfg.method!r}; only method 'toco' can be exported as ONNX so far")
    if (amount := sum(part.numel() * part.element_size() for part in model.state_dict().values())) > MOST_BYTES:
        raise ValueError(f"{run.path} has {amount / 1e9:.1f} GB of weights; an ONNX file holds 2 GB at most")
    any_size = size is None and is_plain_vit(model.encoder)
    side = _side(model, cfg, size, any_size=any_size)
    graph = _Graph(model, segment=not why_no_decoder(cfg, cfg.steps)).eval()
    proto = _traced(graph, toy_images(2, side), any_size=any_size)
    proto.metadata_props.extend(_properties(_metadata(run, model, cfg)))
    content = proto.SerializeToString()
    others = [toy_images(1, side + model.patch_size)[..., :side]] if any_size else []
    differences = compare_with_torch(content, graph, [toy_images(3, side), *others])
    with atomic_write(out) as file:
        file.write(content)
    return Exported(out, tuple(output.name for output in proto.graph.output), None if any_size else side, differences)


def toy_images(number: int, side: int) -> Tensor:
    """Toy scenes as grey levels, (number, 3, side, side) float32."""
    scenes = [make_scene(1, index, size=max(side, 48)).image for index in range(number)]
    images = torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2).float()
    return images[..., :side, :side].contiguous()


def compare_with_torch(content: bytes, graph: nn.Module, images: Iterable[Tensor]) -> dict[str, float]:
    """The largest difference of each output between onnxruntime and torch, as a share of the output's largest value.

    Args:
        content: The ONNX file.
        graph: What it was made from.
        images: Batches of grey levels, (B, 3, H, W).

    Returns:
        Output -> share, the largest over the batches; empty if onnxruntime is not installed.

    Raises:
        ValueError: If onnxruntime does not run the file, or a share exceeds `TOLERANCE`.
    """
    if find_spec("onnxruntime") is None:
        return {}
    import onnxruntime

    found: dict[str, float] = {}
    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        for batch in images:
            with torch.no_grad():
                expected = graph(batch)
            for name, ours, theirs in zip(names, expected, session.run(names, {"image": batch.numpy()}), strict=True):
                share = float((torch.from_numpy(theirs) - ours).abs().max() / ours.abs().max().clamp(min=1e-12))
                found[name] = max(found.get(name, 0.0), share)
    except Exception as error:  # onnxruntime's errors have no common class of their own
        raise ValueError(f"onnxruntime does not run the exported network: {str(error).strip()[:500]}") from error
    if wrong := {name: share for name, share in found.items() if not share <= TOLERANCE}:
        shares = ", ".join(f"{name} by {share:.1e}" for name, share in wrong.items())
        raise ValueError(f"the exported network differs from torch in {shares} of their largest value; nothing written")
    return found


def _side(model: ToCo, cfg: Config, size: int | None, *, any_size: bool) -> int:
    """Side of the images with which the network is traced."""
    unit = model.patch_size
    if size is not None:
        if size < unit or size % unit:
            raise ValueError(f"size must be a multiple of {unit}, the side of a token of this run, got {size}")
        return size
    side = max(unit, (cfg.eval_cam_size or cfg.crop_size) // unit * unit)
    # at the native size of its positions a ViT does not resample them, and a trace would not know how to
    return side + unit * (any_size and side == cfg.image_size)


def _traced(graph: _Graph, example: Tensor, *, any_size: bool) -> Any:
    """The network as an `onnx.ModelProto`, for any number of images.

    Raises:
        ValueError: If torch cannot trace or translate it.
    """
    free = {0: "batch"} | ({2: "height", 3: "width"} if any_size else {})
    names = [name for name in OUTPUTS if name != "seg_logits" or graph.segment]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own parts
            program = torch.onnx.export(
                graph, (example,), input_names=["image"], output_names=names, dynamic_shapes=(free,), verbose=False
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ValueError(f"torch cannot write this network as ONNX: {reason[:300]}") from error
    proto = cast(torch.onnx.ONNXProgram, program).model_proto
    for output in proto.graph.output:
        for axis, name in zip(output.type.tensor_type.shape.dim, OUTPUTS[output.name][0], strict=True):
            if axis.dim_param:
                axis.dim_param = name
        output.doc_string = OUTPUTS[output.name][1]
    return proto


def _metadata(run: RunDir, model: ToCo, cfg: Config) -> dict[str, str]:
    """What a reader of the file has to know, as texts; lists are JSON."""
    return {
        "classes": json.dumps(class_names(cfg)),
        "mean": json.dumps([float(value) for value in model.mean]),
        "std": json.dumps([float(value) for value in model.std]),
        "normalisation": "part of the graph, which takes RGB grey levels 0 to 255",
        "patch_size": str(model.patch_size),
        "checkpoint": weights_hash(run.checkpoints()[-1]),
        "run": run.name,
        "config": cfg.to_json(),
        "scales": "one pass at scale 1, without mirror image",
        "toco_lab": version_of("toco_lab") or "unknown",
    }


def _properties(texts: dict[str, str]) -> list[Any]:
    import onnx

    return [onnx.StringStringEntryProto(key=key, value=value) for key, value in texts.items()]
