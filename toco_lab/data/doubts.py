"""Images, masks and labels that can be read and may still be wrong: what `check_dataset` says of them."""

from collections.abc import Sequence

import numpy as np

from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.data.classes import PALETTE
from toco_lab.data.image_labels import label_of_mask
from toco_lab.data.images import conversions, load
from toco_lab.data.readers import Reader, open_dataset
from toco_lab.words import counted

_OF_ONE = {"are": "is", "have": "has", "hold": "holds"}
Colour = tuple[int, int, int]
DARK = 32  # of 255; photos have brighter pixels, numbers of 12 bits in a file of 16 have none
LOOKED_AT = 200  # masks that are compared with labels before a run or an evaluation


class Doubts:
    """Looks at one image after the other, and counts."""

    def __init__(self, reader: Reader, doubtful: dict[str, list[str]]) -> None:
        """`doubtful` gets a few words for each doubtful image, by its name."""
        self.reader, self.doubtful = reader, doubtful
        self.compared: list[str] = []  # images that have a label and a mask
        self.unseen: list[str] = []  # the label names a class that the mask does not show
        self.unnamed: list[str] = []  # the mask shows a class that the label does not name
        self.swallowed: list[str] = []  # 255 is the only foreground
        self.recoloured: list[str] = []
        self.moved: list[str] = []  # a colour has another number than in a mask before, or a number another colour
        self.converted: dict[str, list[str]] = {}  # names of the images of which something was changed, by what
        self.labelled, self.shown = np.zeros(len(reader.classes), int), np.zeros(len(reader.classes), int)
        self._numbers_of: dict[Colour, frozenset[int]] = {}
        self._colour_of: dict[int, Colour] = {}

    def look_at_image(self, index: int, image: np.ndarray) -> None:
        """Note what reading an image, uint8 (H, W, 3), changed besides decoding it, and whether it is nearly black."""
        path = self.reader.image_path(index)
        dark = [f"are nearly black: no value reaches {DARK} of 255. Numbers of 12 bits in files of 16?"]
        for words in (conversions(path) if path is not None else []) + dark * bool(image.max() < DARK):
            self.converted.setdefault(words, []).append(self.reader.names[index])

    def look(self, index: int, mask: np.ndarray, label: np.ndarray | None) -> None:
        """Compare a mask, (H, W), with the label of its image, (C,), and with the masks before it."""
        name = self.reader.names[index]
        shown = label_of_mask(mask, len(self.reader.classes))
        differs = np.zeros(0) if label is None else label - shown
        if label is not None:
            self.compared.append(name)
            self.labelled += label > 0
            self.shown += shown > 0
        recoloured, moved = self._look_at_palette(index, mask)
        for wrong, names, words in (
            ((differs > 0).any(), self.unseen, "label without pixels"),
            ((differs < 0).any(), self.unnamed, "class without label"),
            (not shown.any() and (mask == IGNORE_INDEX).any(), self.swallowed, f"nothing but {IGNORE_INDEX}"),
            (recoloured, self.recoloured, "palette"),
            (moved, self.moved, "palette of its own"),
        ):
            if wrong:
                names.append(name)
                self.doubtful.setdefault(name, []).append(words)

    def _look_at_palette(self, index: int, mask: np.ndarray) -> tuple[bool, bool]:
        """Whether VOC's colours have other numbers than VOC's, and whether colours and numbers fit those seen before.

        Both happen where pictures are quantised, or saved as GIF: the palette is then sorted anew for each file.
        """
        path = self.reader.mask_path(index)
        palette = None if path is None else load(path).getpalette()
        if palette is None:
            return False, False
        colours = np.array(palette, np.uint8).reshape(-1, 3)
        count = len(self.reader.classes) + 1
        recoloured = moved = False
        for number in np.setdiff1d(mask, IGNORE_INDEX).tolist():
            if number >= len(colours) or np.ptp(colours[number]) == 0:  # grey palettes mean nothing
                continue
            meant = np.flatnonzero((PALETTE[:count] == colours[number]).all(1))
            recoloured |= len(meant) > 0 and meant[0] != number
            same = frozenset(np.flatnonzero((colours == colours[number]).all(1)).tolist())
            red, green, blue = colours[number].tolist()
            colour = red, green, blue
            moved |= not same & self._numbers_of.setdefault(colour, same)
            moved |= colour != self._colour_of.setdefault(number, colour)
        return bool(recoloured), bool(moved)

    def problems(self) -> list[str]:
        """What makes numbers wrong."""
        differ = set(self.unseen) | set(self.unnamed)
        most = [name for name in self.compared if name in differ]
        if 2 * len(most) <= len(self.compared) or not self.shown.any():  # masks without a class have an error of theirs
            most = []
        of, rule = f"of {counted(len(self.compared), 'mask')}", "Line k of classes.txt must be the class that the masks"
        what = f"the classes that the labels name. {rule} hold as number k, which only their maker knows"
        anew = (
            "a colour another number, or a number another colour, than the masks before: a palette was sorted anew for "
            "each file (GIF, quantised pictures). Number the classes alike in all masks"
        )
        return [
            *listed(most, f"{of} does not show {what}", f"{of} do not show {what}"),
            *listed(self.moved, f"mask gives {anew}", f"masks give {anew}"),
        ]

    def absent_classes(self) -> list[str]:
        """A line on the classes that have labels and no pixel; [] for none."""
        absent = self.labelled.astype(bool) & ~self.shown.astype(bool)
        names = [name for name, is_absent in zip(self.reader.classes, absent, strict=True) if is_absent]
        return listed(names, *(f"{are} named by labels and shown by no mask" for are in ("class is", "classes are")))

    def notes(self) -> list[str]:
        """What may be right and should be known."""
        return [
            *_noted(self.unseen, "image", "a label with a class that the mask does not show"),
            *_noted(self.unnamed, "image", "a mask with a class that the label does not name"),
            *self.absent_classes(),
            *_noted(self.swallowed, "mask", f"{IGNORE_INDEX}, which is not counted, as the only foreground"),
            *_noted(
                self.recoloured,
                "mask",
                "VOC's colours at other numbers than VOC: if they were quantised from colour pictures, their numbers "
                "are not the classes",
            ),
            *(note for words, images in self.converted.items() for note in listed(images, *_of_one_and_many(words))),
        ]


def truth_warnings(cfg: Config, split: str | None = None) -> list[str]:
    """Why the scores on a split may be wrong although every mask can be read: the labels say something else.

    Only the first `LOOKED_AT` images are read, and none where the labels come from the masks.

    Args:
        cfg: Names the data set.
        split: None takes `cfg.val_split`.

    Returns:
        A sentence for each reason; [] if there is none.

    Raises:
        DataError: If the split cannot be opened, or one of the masks or labels is wrong.
    """
    split = split or cfg.val_split
    if cfg.dataset == "toy" or cfg.label_source in ("masks", "annotations"):
        return []
    reader = open_dataset(cfg, split)
    doubts = Doubts(reader, {})
    for index, has_mask in enumerate(reader.has_masks()[:LOOKED_AT]):
        mask = reader.mask(index) if has_mask else None
        if mask is not None:
            doubts.look(index, mask, reader.image_label(index))
    found = doubts.problems() + (doubts.absent_classes() if doubts.compared else [])
    return [f"warning: scores on {split!r} in {reader.root}: {reason}" for reason in found]


def _of_one_and_many(words: str) -> tuple[str, str]:
    """What `conversions` says of several images, for one image and for many."""
    verb, _, rest = words.partition(" ")
    return f"image {_OF_ONE[verb]} {rest}", f"images {words}"


def _noted(cases: Sequence[str], thing: str, words: str) -> list[str]:
    return listed(cases, f"{thing} has {words}", f"{thing}s have {words}")


def listed(cases: Sequence[str], one: str, many: str) -> list[str]:
    """A line with the number of the cases, `one` or `many` as words, and the first three of them; [] for none."""
    first = f"({', '.join(cases[:3])}{', ...' if len(cases) > 3 else ''})"
    return [f"{counted(len(cases), one, many)} {first}"] if cases else []
