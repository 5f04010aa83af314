"""The command `data`: check, show, label, convert, paint and prepare data sets."""

from pathlib import Path
from typing import Any, Literal

import tyro

from toco_lab.commands.parser import Commands
from toco_lab.config import Config
from toco_lab.files import atomic_write, check_writable, did_you_mean
from toco_lab.presets import PRESETS
from toco_lab.words import counted

data = Commands()
prepare = Commands()


def _data_config(what: str, **changes: Any) -> Config:
    """`_given_config` with what a folder says of itself."""
    from toco_lab.data.own_folder import complete_config

    return complete_config(_given_config(what, **changes))


def _given_config(what: str, **changes: Any) -> Config:
    """The config of a preset, a file or any folder; changes of None are left out, those without effect refused."""
    from toco_lab.data.unused import refuse_unused
    from toco_lab.runs.config_file import read_config

    is_file = what not in PRESETS and Path(what).is_file()
    if what not in PRESETS and not is_file and not Path(what).is_dir():
        hint = did_you_mean(what, PRESETS) or f"; presets are: {', '.join(PRESETS)}"
        raise ValueError(f"{what!r} is neither a folder, nor a config file, nor a preset{hint}")
    folder = Config.preset("folder")
    cfg = Config.preset(what) if what in PRESETS else read_config(what) if is_file else folder.replace(data_root=what)
    given = {name: value for name, value in changes.items() if value is not None}
    if what not in PRESETS and not is_file and "data_root" in given:
        raise ValueError(f"two folders given: {what} and --data-root {given['data_root']}. Leave one out")
    cfg = cfg.replace(**given)
    refuse_unused(cfg, given)
    return cfg


def _check_count(count: int) -> None:
    if count < 1:
        raise ValueError(f"--count must be at least 1 image, got {count}")


def _check_png(out: Path) -> None:
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out must end in .png, the kind of picture that is written, got {out}")
    check_writable(out)  # before a whole data set is read


@data.command
def check(
    what: tyro.conf.Positional[str],
    split: str | None = None,
    data_root: str | None = None,
    label_source: str | None = None,
    count: int = 8,
    out: Path = Path("data.png"),
) -> None:
    """Read a whole data set: list every problem, sum up what is there, and show the worst images.

    Args:
        what: A preset or config file whose data set is meant, or any folder.
        split: List to read; None checks the training and the validation list.
        data_root: Folder of the preset's data set; None takes the preset's.
        label_source: masks, xml, annotations, or a label file; None takes the preset's, of a folder what is there.
        count: Images to show of each list.
        out: PNG to write, and beside it a .txt with all problems, where they are many.
    """
    from toco_lab.data.check import SHOWN_PROBLEMS, check_dataset, contact_sheet, shared_pictures

    _check_count(count)
    _check_png(out)
    cfg = _data_config(what, data_root=data_root, label_source=label_source)
    found = [
        check_dataset(cfg, name) for name in ([split] if split else dict.fromkeys((cfg.train_split, cfg.val_split)))
    ]
    if len(found) == 2:
        found[1].notes += shared_pictures(*found)
    print(*found, sep="\n\n")
    rows = [row for report in found if report.num_images for row in contact_sheet(cfg, report, count)]
    if rows:
        write_pictures(cfg, rows, out)
    if any(len(report.problems) > SHOWN_PROBLEMS for report in found):
        with atomic_write(out.with_suffix(".txt"), "w") as file:
            file.write("\n\n".join(report.text() for report in found) + "\n")
        print(out.with_suffix(".txt"))
    if problems := sum(len(report.problems) for report in found):
        raise ValueError(
            f"{counted(problems, 'problem')} in {cfg.dataset} {', '.join(report.split for report in found)}"
        )


@data.command
def show(
    what: tyro.conf.Positional[str],
    split: str | None = None,
    data_root: str | None = None,
    count: int = 4,
    out: Path = Path("data.png"),
) -> None:
    """Draw the first images of a list with their masks.

    Args:
        what: A preset or config file whose data set is meant, or any folder.
        split: List to read; None takes the validation list.
        data_root: Folder of the preset's data set; None takes the preset's.
        count: Images to show.
        out: PNG to write.
    """
    from toco_lab.data.readers import open_dataset

    _check_count(count)
    _check_png(out)
    cfg = _data_config(what, data_root=data_root)
    reader = open_dataset(cfg, split or cfg.val_split)
    chosen = range(min(count, len(reader)))
    write_pictures(cfg, [(reader.names[i], {"image": reader.image(i), "mask": reader.mask(i)}) for i in chosen], out)


def write_pictures(cfg: Config, named: list[tuple[str, dict[str, Any]]], out: Path) -> None:
    from toco_lab.data.classes import PALETTE, label_names
    from toco_lab.figures import pictures

    known = label_names(cfg)
    legend = (*known, *(f"number {value}" for value in range(len(known), 255)))  # a wrong mask may hold any number
    names, rows = zip(*named, strict=True)
    figure = pictures.cam_gallery(rows, palette=PALETTE, class_names=legend, names=names)
    with atomic_write(out) as file:
        figure.savefig(file, format="png")
    print(out)


@data.command
def labels(
    what: tyro.conf.Positional[str],
    source: Literal["masks", "xml"] = "masks",
    data_root: str | None = None,
    out: Path | None = None,
) -> None:
    """Write the image labels of a data set as a table, from its masks or from its XML files.

    Args:
        what: A preset or config file whose data set is meant, or any folder.
        source: masks, or xml (Annotations/*.xml).
        data_root: Folder of the preset's data set; None takes the preset's.
        out: The file, .csv or .json; None takes labels.csv in the data set's folder.
    """
    from toco_lab.data.label_tables import label_table, write_labels

    cfg = _given_config(what, data_root=data_root)
    out = out or Path(cfg.data_root, "labels.csv")
    table = label_table(cfg, source)
    write_labels(out, table)
    empty = [name for name, found in table.items() if not found]
    print(f"{out}: {counted(len(table), 'image')}, {counted(len(set().union(*table.values())), 'class')}")
    if empty:
        print(f"without a class, all background for training: {len(empty)} ({', '.join(empty[:5])})")


@data.command
def convert(
    source: tyro.conf.Positional[Path],
    target: tyro.conf.Positional[Path],
    side: int = 0,
    levels: Literal["percentile", "range"] = "percentile",
    bits: int = 0,
    bands: tuple[int, ...] = (),
) -> None:
    """Make RGB PNGs of 8 bits of images of many bits, bands or pixels, with their masks, labels and lists.

    Writes images/, masks/, labels.csv, classes.txt, train.txt, val.txt and prepared.json, which the protocol of every
    number then quotes. `docs/domains.md` says more.

    Args:
        source: Folder with images/, or images alone: pictures, TIFFs of any bands, arrays .npy of (H, W, bands).
        target: New folder.
        side: Cut images into windows of this side, in pixels, with labels from their masks; 0 cuts nothing.
        levels: More than 8 bits become 8: percentile (1 to 99 of each band) or range (of the type, or --bits).
        bits: That are used, for range: 12 of a scanner's 16; 0 takes those of the type of number.
        bands: The three bands that become red, green, blue, counted from 1; none given takes the only one, or three.
    """
    from toco_lab.data.convert import convert_folder

    print(convert_folder(source, target, side=side, levels=levels, bits=bits, bands=bands or None))


@data.command
def paint(
    folder: tyro.conf.Positional[Path],
    world: Literal["shapes", "parts", "same_class", "tissue", "land"] = "tissue",
    images: int = 24,
    across: int = 4,
    side: int = 96,
    first: int = 0,
) -> None:
    """Write scenes of a toy world as scans of 12 bits, with masks and labels: a folder to try a recipe on.

    Args:
        folder: New folder.
        world: What the scenes show.
        images: How many to write.
        across: Scenes in a row and in a column of an image.
        side: Of a scene, in pixels.
        first: Number of the first scene; another one gives other images.
    """
    from toco_lab.data.paint import paint_folder

    print(paint_folder(folder, world=world, images=images, across=across, side=side, first=first))


@prepare.command
def voc(folder: tyro.conf.Positional[Path], download: bool = False, subset: bool = False) -> None:
    """VOC 2012 and SBD: unpack the archives, write SBD's masks and the list train_aug of 10,582 images.

    Args:
        folder: Holds the archives, or what was in them; it is then the data_root.
        download: Fetch archives that are missing (3.4 GB) and check them.
        subset: Allow another number of images: a part of VOC.
    """
    from toco_lab.data.prepare_voc import prepare_voc

    print(prepare_voc(folder, download=download, subset=subset))


@prepare.command
def coco(
    folder: tyro.conf.Positional[Path], crowds: Literal["class", "ignore"] = "class", subset: bool = False
) -> None:
    """COCO 2014: unpack the archives, paint the masks from the annotations, write the lists.

    Args:
        folder: Holds the archives, or what was in them; it is then the data_root.
        crowds: Crowd regions are painted as their class, or as 255 (not counted); train with the same --crowds.
        subset: Allow another number of images: a part of COCO.
    """
    from toco_lab.data.prepare_coco import prepare_coco

    print(*prepare_coco(folder, crowds=crowds, subset=subset), sep="\n")


data.command(
    prepare,
    name="prepare",
    help="Make a downloaded data set ready. A killed command continues when it is given again.",
)
