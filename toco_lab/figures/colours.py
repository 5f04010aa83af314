"""Colours of lines and bars, the same on screen and on paper."""

from collections.abc import Iterable

LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F")  # Okabe and Ito
RUN_DOT, MEAN_BAR = LINE_COLOURS[:2]  # of an ablation: single runs, and their mean


def assign_colours(names: Iterable[str]) -> dict[str, str]:
    """One colour per name, in order of appearance. Pass the result to every figure: a run then looks alike in all."""
    return {name: LINE_COLOURS[i % len(LINE_COLOURS)] for i, name in enumerate(dict.fromkeys(names))}
