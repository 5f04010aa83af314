"""The command `student`: from a finished run to a smaller network that segments."""

from pathlib import Path
from typing import Any, Literal

import tyro


def student(
    run: tyro.conf.Positional[Path],
    backbone: str | None = None,
    depth: int | None = None,
    embed_dim: int | None = None,
    num_heads: int | None = None,
    kind: Literal["refined", "seg", "seed", "crf", "aux"] | None = None,
    hard_only: bool = False,
    root: Path | None = None,
    name: str | None = None,
    device: str = "auto",
) -> None:
    """Train a second stage on the pseudo labels of a run, and on its segmentation; print both beside the labels.

    Labels, student and scores that are there are not made again: a stopped command continues when it is given again.
    `docs/students.md` says what is learnt.

    Args:
        run: Folder of a finished run, the teacher.
        backbone: timm name of the student's encoder; None takes the teacher's.
        depth: ViT: blocks of the student.
        embed_dim: ViT: token width of the student.
        num_heads: ViT: attention heads of the student.
        kind: Pseudo labels to learn from, as of `pseudo_labels`; None takes refined, or seg of a run without CAMs.
        hard_only: Learn from the labels alone, not from the teacher's segmentation of the same view.
        root: Folder that holds the student's run; None takes the one that holds the teacher's.
        name: Folder name below it; None makes one of the config.
        device: auto, cpu, cuda ...
    """
    from toco_lab.runs.run_dir import RunDir
    from toco_lab.students import make_student

    sizes = {"backbone": backbone, "depth": depth, "embed_dim": embed_dim, "num_heads": num_heads}
    changes: dict[str, Any] = {field: value for field, value in sizes.items() if value is not None}
    teacher = RunDir(run)
    made = make_student(teacher, kind=kind, hard_only=hard_only, root=root, name=name, device=device, **changes)
    print(f"\n{made}")
    if teacher.config().pretrained and not made.run.config().pretrained:
        print("the student began with random weights: the pretrained ones are of another size")
    print(f"labels: {made.labels.out}\ndone: {made.run.path}")
