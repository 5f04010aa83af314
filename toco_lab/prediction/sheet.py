"""The contact sheet: image, CAMs and mask of the first images, as one offline page and as a picture.

It is made of the files that lie in the folder, so that a continued call gives the same sheet.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from toco_lab.data.classes import PALETTE
from toco_lab.data.images import load, read_rgb, scaled_down
from toco_lab.evaluation.gallery import encode_picture
from toco_lab.figures.pictures import cam_gallery, colour_scale, label_pixels, plain_text
from toco_lab.files import atomic_write
from toco_lab.prediction.output import SCORE, OutputFolder, Row, present_in
from toco_lab.prediction.pictures_given import ImageFile
from toco_lab.vocabulary import BACKGROUND

SHEET_IMAGES = 60  # on the page, unless another number is asked for
PICTURE_IMAGES = 12  # in the picture
SHOWN_CAMS = 3  # of each image, the highest scores first
_EDGE = 280  # longest side of a picture, in pixels

Shown = tuple[Row, np.ndarray, Mapping[str, np.ndarray], np.ndarray]  # line, image, CAM by class, mask

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; --line: #ccc; --soft: #555; }}
@media (prefers-color-scheme: dark) {{ :root {{ --line: #444; --soft: #bbb; }} }}
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 76rem; padding: 0 1rem; }}
h1 {{ font-size: 1.3rem; }} h2 {{ font-size: 1rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }}
.legend span {{ margin-right: 1rem; white-space: nowrap; }}
.legend i {{ display: inline-block; width: .9em; height: .9em; border: 1px solid #777; margin-right: .3em; }}
.legend i.scale {{ width: 6em; margin: 0 .4em; background: linear-gradient(to right, {scale}); }}
article {{ border-top: 1px solid var(--line); padding: .8rem 0; break-inside: avoid; }}
.row {{ display: flex; flex-wrap: wrap; gap: .6rem; }}
figure {{ margin: 0; width: 13rem; max-width: calc(50% - .3rem); }}
figure img {{ display: block; width: 100%; height: auto; }}
figcaption, .soft {{ color: var(--soft); font-size: .85rem; }}
</style></head><body>
<h1>{title}</h1>
<p class="soft">{about}</p>
<p class="legend"><span>CAM score 0<i class="scale"></i>1</span>{legend}</p>
{articles}
</body></html>
"""


def write_sheet(
    folder: OutputFolder, files: Sequence[ImageFile], rows: Mapping[str, Row], *, of: int, title: str
) -> None:
    """Write contact_sheet.html, and contact_sheet.png with the first of its images.

    Args:
        folder: It holds the outputs.
        files: The images.
        rows: Their lines of labels.csv.
        of: How many images there are in all.
        title: Heading.
    """
    articles: list[str] = []
    seen: set[int] = set()
    printed: list[Shown] = []
    for file in files:
        row, mask = rows[file.name], np.array(load(folder.mask(file.name)))
        image = scaled_down(read_rgb(file.path), _EDGE)
        seen |= set(np.unique(mask).tolist())
        cams = {name: _small(folder.overlay(file.name, name)) for name in _strongest(row)[: SHOWN_CAMS * folder.cams]}
        articles.append(_article(row, image, cams, mask))
        if len(printed) < PICTURE_IMAGES:
            printed.append((row, image, cams, mask))
    first = f"The first {len(files)} of {of}." if len(files) < of else ""
    legend = "".join(
        f'<span><i style="background:rgb{tuple(PALETTE[number].tolist())}"></i>{html.escape(name)}</span>'
        for number, name in enumerate((BACKGROUND, *folder.classes)) if number in seen
    )  # fmt: skip
    about = f"{first} How they were made: protocol.json. Scores are the classifier's, in per cent."
    page = _PAGE.format(
        title=html.escape(title), about=about.strip(), legend=legend, articles="\n".join(articles),
        scale=", ".join(colour_scale()),
    )  # fmt: skip
    with atomic_write(folder.path / "contact_sheet.html", "w") as written:
        written.write(page)
    _write_picture(folder, printed)


def _write_picture(folder: OutputFolder, shown: Sequence[Shown]) -> None:
    """contact_sheet.png: image, CAM of the strongest class, mask."""
    drawn = [{"image": image, "CAM of the strongest class": next(iter(cams.values()), None), "mask": mask}
             for _, image, cams, mask in shown]  # fmt: skip
    names = [plain_text("\n".join([row["image"], *(_said(row, name) for name in cams)])) for row, _, cams, _ in shown]
    legend = (BACKGROUND, *folder.classes)
    figure = cam_gallery(drawn, palette=PALETTE, class_names=legend, names=names)
    with atomic_write(folder.path / "contact_sheet.png") as file:
        figure.savefig(file, format="png", dpi=80)


def _article(row: Row, image: np.ndarray, cams: Mapping[str, np.ndarray], mask: np.ndarray) -> str:
    """One image of the page."""
    name = row["image"]
    shown = [("image", image), *((f"CAM: {_said(row, one)}", pixels) for one, pixels in cams.items())]
    shown.append((f"mask: {', '.join(row['in_mask'].split(';')) or 'background'}", _mask_pixels(mask)))
    figures = "".join(
        f'<figure><img src="{_source(pixels)}" alt="{html.escape(f"{name}, {caption}")}" width="{pixels.shape[1]}" '
        f'height="{pixels.shape[0]}"><figcaption>{html.escape(caption)}</figcaption></figure>'
        for caption, pixels in shown
    )
    present = ", ".join(_said(row, one) for one in _strongest(row)) or "no class is present"
    return (
        f"<article><h2>{html.escape(name)}</h2><p class='soft'>{row['width']} x {row['height']} pixels; "
        f"{html.escape(present)}</p><div class='row'>{figures}</div></article>"
    )


def _strongest(row: Row) -> list[str]:
    """The present classes of an image, the highest score first."""
    return sorted(present_in(row), key=lambda name: -float(row[SCORE + name]))


def _said(row: Row, name: str) -> str:
    return f"{name} {100 * float(row[SCORE + name]):.0f} %"


def _small(path: Path) -> np.ndarray:
    return scaled_down(np.array(load(path).convert("RGB")), _EDGE)


def _mask_pixels(mask: np.ndarray) -> np.ndarray:
    """A mask in its colours, made small without mixing them."""
    height, width = mask.shape
    factor = min(1.0, _EDGE / max(height, width))
    size = max(1, round(factor * width)), max(1, round(factor * height))
    return label_pixels(np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)), PALETTE)


def _source(pixels: np.ndarray) -> str:
    return f"data:image/webp;base64,{base64.b64encode(encode_picture(pixels)).decode()}"
