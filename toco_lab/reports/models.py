"""The report of a comparison of whole models: one offline page, the tables as CSV, and the protocol beside them."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
from PIL import Image

from toco_lab.evaluation.gallery import encode_picture
from toco_lab.figures import interactive, series
from toco_lab.figures.colours import assign_colours
from toco_lab.files import atomic_write
from toco_lab.reports import parts
from toco_lab.reports.export import write_page
from toco_lab.reports.parts import Part, Table, escape, image_tag, paragraph
from toco_lab.smoothing.compare import ARTIFACTS, BETWEEN_MODELS, ModelComparison
from toco_lab.vocabulary import AFTER_BLOCK, FINAL_NORM, MEAN_ABSOLUTE_COSINE
from toco_lab.words import counted

Section = Sequence[Part | Table]
_FLAT = 0.01  # range of a curve that is called flat
_HOW_TO_READ = (
    "Higher means that the patch tokens of an image are more alike: smoother. A line runs through the blocks, the "
    "diamond behind it is the final norm; the band is from the lower to the upper quartile over images. Compare with "
    "random weights before a curve is said to come from training."
)
_PANELS = (
    "Each metric on its own scale. A cosine to the mean border token near 1 says that inside and border look alike; an "
    "effective rank near 1, that the tokens of an image lie on one line; the Gram distance to the block before, how "
    "much a block changes which places are alike."
)
_PICTURES = (
    "The first three principal components of the patch tokens, scaled to length 1, as red, green and blue. In one row "
    "of a model all images share one basis, so equal colours are alike tokens; between rows and models colours say "
    "nothing. A single patch of another colour on flat ground may be an artifact."
)
_ARTIFACTS = (
    "The share of tokens longer than the median plus 5 standard deviations (by the median absolute deviation), one cut "
    "per layer for all images: high-norm tokens, in which large ViTs without registers keep global information "
    "(Darcet et al. 2024)."
)
_GRAM = (
    "The mean squared difference of the cosines between all places, DINOv3's Gram objective: 0 where two models relate "
    "the places of an image alike, whatever their width. It needs equal grids; blocks are paired by their number, and "
    "the final norms with each other."
)


def write_model_report(comparison: ModelComparison, folder: Path, *, title: str = "") -> list[Path]:
    """Write report.html, table.csv (means), images.csv (every image), and protocol.json into a folder.

    Args:
        comparison: What `smoothing.measure_models` found.
        folder: Made if needed; files of these names are replaced.
        title: Heading; "" counts the models.

    Returns:
        The files.
    """
    every = pd.concat([comparison.frame, comparison.gram], ignore_index=True)
    texts = {
        "table.csv": comparison.table.to_csv(index=False, lineterminator="\n"),
        "images.csv": every.to_csv(index=False, lineterminator="\n"),
        "protocol.json": json.dumps(comparison.protocol, indent=1, ensure_ascii=False) + "\n",
    }
    for name, text in texts.items():
        with atomic_write(folder / name, "w") as file:
            file.write(text)
    page = folder / "report.html"
    title = title or f"Over-smoothing of {counted(len(comparison.protocol['models']), 'model')}"
    write_page(_notebook(_sections(comparison, title)), page, title)
    return [page, *(folder / name for name in texts)]


def _sections(comparison: ModelComparison, title: str) -> dict[str, Section]:
    """Heading -> what stands below it; the first has the title as heading of the page."""
    colours = assign_colours(comparison.protocol["models"])
    protocol = comparison.protocol
    measured = f"{counted(protocol['images'], 'image')} from {protocol['images_from']}, {protocol['image_size']}."
    found: dict[str, Section] = {
        "": [parts.heading(title, 1, measured), *(paragraph(line) for line in found_out(comparison))],
        "Similarity per layer": [
            parts.drawing(
                "similarity", "Similarity of patch tokens per layer",
                interactive.smoothing_curves(comparison.frame, colours=colours),
            ),
            paragraph(_HOW_TO_READ),
        ],
        "Tokens as colours": [_pictures(comparison), paragraph(_PICTURES)],
        "Other metrics": [_panels(comparison, colours), paragraph(_PANELS)],
        "Artifacts": [
            _artifact_table(comparison, colours),
            paragraph(_ARTIFACTS),
            *(paragraph(line) for line in registers_found(comparison)),
        ],
    }  # fmt: skip
    if len(protocol["models"]) > 1:
        found["Gram distance between models"] = _gram(comparison)
    found["Models and protocol"] = [_model_table(comparison, colours)]
    return found


def found_out(comparison: ModelComparison) -> list[str]:
    """A sentence per model: where its tokens are least and most alike, and how alike they end."""
    rows = series.rows_of_metric(comparison.frame, MEAN_ABSOLUTE_COSINE)
    lines = []
    for model, own in rows.groupby("model", sort=False):
        means = own.groupby(["site", "layer"])["value"].mean()
        blocks = means[AFTER_BLOCK]
        places = {blocks.index[0]: "", blocks.idxmin(): " (lowest)", blocks.idxmax(): " (highest)"}
        places.setdefault(blocks.index[-1], "")
        said = [f"{blocks[block]:.2f} after block {block}{words}" for block, words in sorted(places.items())]
        if blocks.max() - blocks.min() < _FLAT:
            said = [f"{blocks.mean():.2f} after every block"]
        line = f"{model}: mean |cos| between patch tokens is {', '.join(said)}"
        if FINAL_NORM in means:
            line += f"; and {means[FINAL_NORM].iloc[-1]:.2f} after the final norm"
        lines.append(f"{line}.")
    return lines


def registers_found(comparison: ModelComparison) -> list[str]:
    """A sentence per model: which test-time registers it got and why, or why none; empty where none were asked for."""
    return [f"{model}: registers {what}." for model, what in comparison.protocol.get("registers", {}).items()]


def _panels(comparison: ModelComparison, colours: Mapping[str, str]) -> Part:
    shown = [metric for metric in series.metrics_of(comparison.frame) if metric != MEAN_ABSOLUTE_COSINE]
    figure = interactive.smoothing_panels(comparison.frame, metrics=shown, colours=colours)
    return parts.drawing("metrics", "Every metric per layer", figure)


def _pictures(comparison: ModelComparison) -> Part:
    """A table: the images in columns, a row for each pictured layer of each model."""
    heads = "".join(f'<th scope="col">{escape(Path(name).name)}</th>' for name in comparison.images)
    cells = "".join(f"<td>{_tag(pixels, name)}</td>" for name, pixels in comparison.images.items())
    rows = f'<tr><th scope="row" class="kind">image</th>{cells}</tr>'
    for picture in comparison.pictures:
        cells = ""
        for name, colours in picture.colours.items():
            height, width = comparison.images[name].shape[:2]
            grid = Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST)
            cells += f"<td>{_tag(np.asarray(grid), f'{picture.model}, {picture.layer}, {name}')}</td>"
        words = f"{escape(picture.model)}<br>{escape(picture.layer)}"
        rows += f'<tr><th scope="row" class="kind">{words}</th>{cells}</tr>'
    table = f"<table><thead><tr><td></td>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return Part({"text/html": f'<div class="scroll gallery">{table}</div>'})


def _tag(pixels: np.ndarray, alternative: str) -> str:
    return image_tag(encode_picture(pixels), "webp", alternative)


def _artifact_table(comparison: ModelComparison, colours: Mapping[str, str]) -> Table:
    """A row per model: the share of artifacts where it is largest and after the last block, in per cent."""
    rows = []
    for model, own in series.rows_of_metric(comparison.frame, ARTIFACTS).groupby("model", sort=False):
        blocks = own[own["site"] == AFTER_BLOCK]
        worst = blocks.loc[blocks["value"].idxmax()]
        most = f"{worst['value']:.1%} (block {worst['layer']})" if worst["value"] else "none"
        rows.append((model, most, f"{blocks['value'].iloc[-1]:.1%}"))
    frame = pd.DataFrame(rows, columns=["model", "most", "after the last block"])
    return Table("artifacts", "Share of tokens of large norm", frame, colours=colours)


def _gram(comparison: ModelComparison) -> Section:
    if comparison.gram.empty:
        return [paragraph("No two models have equal grids at this image size, so their places cannot be paired.")]
    figure = interactive.smoothing_curves(
        comparison.gram, metrics=[BETWEEN_MODELS], title="Gram distance between models, block by block"
    )
    return [parts.drawing("gram", "Gram distance between models", figure), paragraph(_GRAM)]


def _model_table(comparison: ModelComparison, colours: Mapping[str, str]) -> Table:
    rows = [
        (name, one["network"], one["weights"], f"{one['side_of_a_token']} px")
        for name, one in comparison.protocol["models"].items()
    ]
    frame = pd.DataFrame(rows, columns=["model", "network", "weights", "side of a token"])
    shown = {
        "images": f"{comparison.protocol['images']} from {comparison.protocol['images_from']}",
        "size": comparison.protocol["image_size"],
        "read": comparison.protocol["images_read"],
        "on": f"{comparison.protocol['device']}, torch {comparison.protocol['torch']}, timm "
        f"{comparison.protocol['timm']}",
    }
    words = parts.BETWEEN.join(f"{name}: {value}" for name, value in shown.items())
    return Table("models", "What was measured", frame, protocol={"": words}, colours=colours)


def _notebook(sections: Mapping[str, Section]) -> nbformat.NotebookNode:
    """The sections as an executed notebook, which is what a page is exported from."""
    cells: list[Any] = []
    for heading, shown in sections.items():
        if heading:
            cells.append(nbformat.v4.new_markdown_cell(f"## {html.escape(heading)}"))
        outputs = []
        for part in shown:
            data, metadata = part._repr_mimebundle_()
            outputs.append(nbformat.v4.new_output("display_data", data=data, metadata=metadata))
        cells.append(nbformat.v4.new_code_cell(outputs=outputs))
    return nbformat.v4.new_notebook(cells=cells)
