"""The same images in all runs, side by side: small pictures for a screen, one figure per kind of map for paper."""

import textwrap
from collections.abc import Iterator, Mapping

import numpy as np

from toco_lab.data.classes import PALETTE
from toco_lab.evaluation.gallery import MAPS, Gallery, JointRow, encode_picture, joint_rows
from toco_lab.figures import pictures
from toco_lab.reports.parts import Part, dot, escape, image_tag, print_only

_RUNS_ABREAST = 5  # columns that a page of paper holds beside image and truth
_FEW = 3  # runs; of fewer a screen shows larger pictures
_PICTURE = 1.15  # side of a picture on paper, in inches


def gallery_part(galleries: Mapping[str, Gallery], names: tuple[str, ...], colours: Mapping[str, str]) -> Part:
    """Small pictures for a screen: of each image the CAMs of all runs side by side, the other maps on request.

    Args:
        galleries: By the name of the run.
        names: Class names 0..C.
        colours: Colour of each run.
    """
    rows = joint_rows(galleries)
    runs = {run: f"{dot(colours[run])}{escape(run)}" for run in galleries}
    first = next((kind for kind in MAPS if any(kind in row.maps for row in rows)), "")
    opened = "".join(_image_block(row, runs, [first], known=True) for row in rows)
    others = [kind for kind in MAPS if kind != first and any(kind in row.maps for row in rows)]
    closed = "".join(_image_block(row, runs, others) for row in rows)
    more = f"<details><summary>{escape(_listed(others))} of these images</summary>{closed}</details>" if others else ""
    side = "9.4rem" if len(runs) < _FEW else "7.4rem"
    return Part({
        "text/html": f'{_legend(rows, names)}<div class="gallery" style="--side:{side}">{opened}{more}</div>',
        "text/markdown": "CAMs are on one scale from 0 to 1.",
    })  # fmt: skip


def _legend(rows: list[JointRow], names: tuple[str, ...]) -> str:
    """The scale of the CAMs and the colours of the classes that are seen."""
    labels = [array for row in rows for maps in row.maps.values() for array in maps.values() if _of_labels(array)]
    labels += [row.truth for row in rows if row.truth is not None]
    seen = sorted({int(value) for array in labels for value in np.unique(array) if value < len(names)})
    classes = "".join(f"<span>{dot(_css(value))}{escape(names[value])}</span>" for value in seen)
    scale = f"linear-gradient(to right, {', '.join(pictures.colour_scale())})"
    return (
        f'<div class="legend"><span>CAM score 0<span class="scale" style="background:{scale}"></span>1</span>'
        f"{classes}</div>"
    )


def _image_block(row: JointRow, runs: Mapping[str, str], kinds: list[str], *, known: bool = False) -> str:
    """One image: what is known of it, and then a group of pictures per kind of map, one of each run."""
    groups = []
    if known:
        shown = {"image": row.image} | ({} if row.truth is None else {"truth": _label(row.truth)})
        pixels = {what: (array, f"{what} of {row.name}") for what, array in shown.items()}
        groups.append(_group(row.name, pixels))
    for kind in (kind for kind in kinds if kind in row.maps):
        maps = {run: array for run, array in row.maps[kind].items() if run in runs}
        drawn = {runs[run]: (_drawn(row.image, array), f"{kind} of {row.name}, {run}") for run, array in maps.items()}
        groups.append(_group(kind, drawn))
    name = "" if known else f'<p class="of">{escape(row.name)}</p>'
    return f'<div class="scene">{name}{"".join(groups)}</div>'


def _group(title: str, pixels: Mapping[str, tuple[np.ndarray, str]]) -> str:
    """Pictures beside each other under one title. HTML below each picture -> its pixels, and what it shows in words."""
    shown = "".join(
        f"<figure>{_tag(array, words)}<figcaption>{below}</figcaption></figure>"
        for below, (array, words) in pixels.items()
    )
    return f'<div class="group"><b>{escape(title)}</b><div class="pictures">{shown}</div></div>'


def _listed(kinds: list[str]) -> str:
    """Some kinds of maps in words, as a sentence begins."""
    text = " and ".join([", ".join(kinds[:-1]), kinds[-1]] if len(kinds) > 1 else kinds)
    return text[:1].upper() + text[1:]


def _drawn(image: np.ndarray, array: np.ndarray) -> np.ndarray:
    return _label(array) if _of_labels(array) else pictures.cam_pixels(image, array)


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
