"""PNGs of figures on paper."""

import io

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from toco_lab.figures import printed


def test_a_png_of_few_colours_is_the_figure_within_a_few_steps_of_brightness() -> None:
    figure = Figure(figsize=(2, 1))
    axes = figure.subplots()
    axes.imshow(np.linspace(0, 1, 200 * 100).reshape(100, 200), cmap="inferno", aspect="auto")
    whole, small = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, format="png", dpi=100)
    printed.write_png(small, figure, dpi=100)
    before, after = (np.asarray(Image.open(file).convert("RGB"), float) for file in (whole, small))
    assert Image.open(small).mode == "P" and small.tell() > 0 and before.shape == after.shape == (100, 200, 3)
    assert np.abs(before - after).mean() < 6 and np.abs(before.mean((0, 1)) - after.mean((0, 1))).max() < 2
    assert (after[0, 0] >= 254).all()
