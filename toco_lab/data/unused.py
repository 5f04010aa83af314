"""Options that a data set does not read: given all the same, they are an error and not passed over."""

from collections.abc import Iterable

from toco_lab.config import Config
from toco_lab.data.classes import DataError
from toco_lab.words import program

TOY = ("toy_world", "toy_objects")  # which only the toy data set reads
UNUSED = {
    "toy": ("data_root", "label_source", "classes", "crowds"),
    "voc": ("classes", "crowds", *TOY),
    "coco": ("classes", *TOY),
    "folder": ("crowds", *TOY),
}


def refuse_unused(cfg: Config, given: Iterable[str]) -> None:
    """Raise DataError if one of the fields `given` by a person is not read by `cfg.dataset`.

    Args:
        cfg: The config with them.
        given: Names of the fields that differ from the preset.
    """
    unused = [name for name in UNUSED[cfg.dataset] if name in set(given)]
    if not unused:
        return
    name = unused[0]
    if name == "data_root":
        remedy = f"For your own images: `{program()} train folder --data-root {cfg.data_root}`, or leave it out"
    else:
        readers = [dataset for dataset in UNUSED if name not in UNUSED[dataset]]
        remedy = f"Leave it out, or take a preset of another data set ({', '.join(readers)})"
    raise DataError(
        f"{name}={getattr(cfg, name)!r} has no effect: the data set {cfg.dataset!r} does not read it. {remedy}"
    )
