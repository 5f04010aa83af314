"""The command `export`: a trained run as an ONNX file."""

from pathlib import Path

import tyro


def export(run: tyro.conf.Positional[Path], out: Path = Path("model.onnx"), size: int | None = None) -> None:
    """Write a trained run as an ONNX file: label scores, CAMs, tokens and segmentation without torch.

    The file is compared with torch by onnxruntime before it is kept. It needs the packages of the extra `onnx`.

    Args:
        run: Folder of the run.
        out: The file to write, .onnx.
        size: Side of the images that the file will take; None lets a plain ViT take any size, and fixes that of the
            evaluation in a Swin, ResNet or ConvNeXt.
    """
    from toco_lab.prediction.onnx import export_onnx
    from toco_lab.runs.run_dir import RunDir

    print(export_onnx(RunDir(run), out, size=size))
