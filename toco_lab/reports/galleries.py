"""The same images in all runs, side by side: small pictures for a screen, one figure per kind of map for paper."""

import textwrap
from collections.abc import Iterator, Mapping

import numpy as np

from toco_lab.data.classes import PALETTE
from toco_lab.evaluation.gallery import MAPS, Gallery, JointRow, encode_picture, joint_rows
from toco_lab.figures import pictures
from toco_lab.reports.parts import Part, dot, escape, image_tag, print_only

_RUNS_ABREAST = 5  # columns that a page of paper holds beside image and truth
_PICTURE = 1.15  # side of a picture on paper, in inches


def gallery_part(galleries: Mapping[str, Gallery], names: tuple[str, ...], colours: Mapping[str, str]) -> Part:
    """A table for a screen: a group of rows per image, in it a row per kind of map, and a column per run.

    Args:
        galleries: By the name of the run.
        names: Class names 0..C.
        colours: Colour of each run.
    """
    rows = joint_rows(galleries)
    heads = "".join(f"<th>{dot(colours[run])}{escape(run)}</th>" for run in galleries)
    groups = "".join(_image_rows(row, list(galleries)) for row in rows)
    labels = [array for row in rows for maps in row.maps.values() for array in maps.values() if _of_labels(array)]
    seen = sorted({int(value) for array in labels for value in np.unique(array) if value < len(names)})
    classes = "".join(f"<span>{dot(_css(value))}{escape(names[value])}</span>" for value in seen)
    scale = f"linear-gradient(to right, {', '.join(pictures.colour_scale())})"
    return Part({
        "text/html": (
            f'<div class="legend"><span>CAM score 0<span class="scale" style="background:{scale}"></span>1</span>'
            f'{classes}</div><div class="scroll gallery"><table><thead><tr><th></th><th></th>{heads}</tr></thead>'
            f"{groups}</table></div>"
        ),
        "text/markdown": "CAMs are on one scale from 0 to 1.",
    })  # fmt: skip


def _image_rows(row: JointRow, runs: list[str]) -> str:
    """The rows of one image; the image itself and its truth stand at the left of all of them."""
    known = {"image": row.image} | ({} if row.truth is None else {"truth": _label(row.truth)})
    shown = "".join(_tag(pixels, f"{what} of {row.name}") for what, pixels in known.items())
    first, lines = f'<td rowspan="{len(row.maps)}">{shown}{escape(row.name)}</td>', []
    for kind, maps in row.maps.items():
        cells = ""
        for run in runs:
            shown = "-"
            if run in maps:
                pixels = _label(maps[run]) if _of_labels(maps[run]) else pictures.cam_pixels(row.image, maps[run])
                shown = _tag(pixels, f"{kind} of {row.name}, {run}")
            cells += f"<td>{shown}</td>"
        lines.append(f'<tr>{first}<th class="kind">{escape(kind)}</th>{cells}</tr>')
        first = ""
    return f"<tbody>{''.join(lines)}</tbody>"


def printed_galleries(galleries: Mapping[str, Gallery], names: tuple[str, ...]) -> Iterator[Part]:
    """A figure for each kind of map, of as many runs as a page holds."""
    rows, runs = joint_rows(galleries), list(galleries)
    for kind in (kind for kind in MAPS if any(kind in row.maps for row in rows)):
        for start in range(0, len(runs), _RUNS_ABREAST):
            columns = {textwrap.fill(pictures.plain_text(run), 18): run for run in runs[start : start + _RUNS_ABREAST]}
            shown = [
                {"image": row.image, "truth": row.truth}
                | {column: row.maps.get(kind, {}).get(run) for column, run in columns.items()}
                for row in rows
            ]
            figure = pictures.cam_gallery(shown, palette=PALETTE, class_names=names, size=_PICTURE, title=kind)
            plain = kind.replace(" ", "_")
            yield print_only(f"gallery_{plain}_{start}" if start else f"gallery_{plain}", kind, figure)


def _of_labels(array: np.ndarray) -> bool:
    return np.issubdtype(array.dtype, np.integer)


def _label(label: np.ndarray) -> np.ndarray:
    return pictures.label_pixels(label, PALETTE)


def _css(value: int) -> str:
    """The colour of a class."""
    return f"rgb{tuple(PALETTE[value].tolist())}"


def _tag(pixels: np.ndarray, alternative: str) -> str:
    return image_tag(encode_picture(pixels), "webp", alternative)
