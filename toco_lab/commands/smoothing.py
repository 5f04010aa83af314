"""The command `smoothing`: whole models side by side on a folder of images."""

from pathlib import Path

import tyro


def smoothing(
    models: tyro.conf.Positional[tuple[str, ...]],
    images: Path,
    out: Path = Path("smoothing"),
    size: int = 224,
    num_images: int = 20,
    metrics: tuple[str, ...] = (),
    registers: int = 0,
    device: str = "auto",
) -> None:
    """Compare how alike the tokens of whole models are, layer by layer, on your images; writes a report.

    A model is the folder of a run, a checkpoint, or a name of timm: NAME downloads its weights, NAME=FILE reads
    them, NAME=random draws them. In OUT: report.html (offline), table.csv, images.csv, protocol.json.

    Args:
        models: One model or several.
        images: Folder of images, subfolders included.
        out: Folder to write.
        size: Side in pixels that images are resized to, squared; 0 keeps their sizes. Models with patches of 14 and of
            16 pixels share 224.
        num_images: Take the first so many images.
        metrics: Names of metrics; none given takes the usual ones. `tl.smoothing.metric_table()` lists all.
        registers: Show each ViT whose tokens have artifacts a second time, with so many test-time registers.
        device: auto, cpu, cuda ...
    """
    from toco_lab.files import check_writable
    from toco_lab.smoothing.compare import COMPARED, measure_models
    from toco_lab.smoothing.named_models import names_of
    from toco_lab.training.processes import resolve_device

    if not models:
        raise ValueError("smoothing needs at least one MODEL: the folder of a run, a checkpoint, or a name of timm")
    if size < 0 or num_images < 1:
        raise ValueError(f"--size must be at least 0 and --num-images at least 1, got {size} and {num_images}")
    if not 0 <= registers <= 64:
        raise ValueError(f"--registers must be in 0..64, got {registers}")
    check_writable(out / "report.html")
    found = measure_models(
        names_of(models),
        images,
        image_size=size,
        num_images=num_images,
        metrics=metrics or COMPARED,
        registers=registers,
        device=resolve_device(device),
    )
    from toco_lab.reports.models import (
        found_out,
        registers_found,
        write_model_report,
    )  # nbformat takes seconds: errors come first

    for line in (*found_out(found), *registers_found(found)):
        print(line)
    for path in write_model_report(found, out):
        print(path)
