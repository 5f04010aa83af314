"""What was found, in two sentences made from the numbers: how well the maps score, and how alike the tokens are.

A difference is the mean over pairs of runs of one seed, with its 95 % interval. One run each says so instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toco_lab.reports.ablation import summarise
from toco_lab.reports.comparison import Comparison
from toco_lab.runs.scores import SCORES
from toco_lab.vocabulary import CAM, CAM_AUX, CAM_AUX_TUNED, CAM_TUNED, MIOU, SEG
from toco_lab.words import counted

_MAPS = {  # score that a report opens with, the first that is there -> its name, and the score at a tuned threshold
    f"{CAM}_{MIOU}": ("the final CAM", f"{CAM_TUNED}_{MIOU}"),
    f"{CAM_AUX}_{MIOU}": ("the auxiliary CAM", f"{CAM_AUX_TUNED}_{MIOU}"),
    f"{SEG}_{MIOU}": ("the segmentation", ""),
}
_SIMILARITY = "similarity_last"
_PERCENT = "\u00a0%"  # which no line begins with


@dataclass(frozen=True)
class _Finding:
    """The row a report speaks of: its line of each score, and, where it is compared, that of its reference.

    Attributes:
        row: Its name.
        main: Score that the first sentence is about.
        own: Score -> line of `summarise`.
        other: The same of the reference; empty for one row.
        beside: How many rows there are.
    """

    row: str
    main: str
    own: Mapping[str, Mapping[str, Any]]
    other: Mapping[str, Mapping[str, Any]]
    beside: int


def found_sentences(comparison: Comparison) -> list[str]:
    """Two sentences, one where the tokens were not measured; none without a score."""
    finding = _finding(comparison)
    if finding is None:
        return []
    sentences = [_about_maps(finding, _threshold(comparison))]
    if _SIMILARITY in finding.own:
        sentences.append(_about_tokens(finding))
    sentences[-1] += _caveat(finding)
    return [f"{sentence}." for sentence in sentences]


def _finding(comparison: Comparison) -> _Finding | None:
    """The row that differs from its reference and scores highest, or the only one."""
    frame = comparison.frame
    scores = [name for name in SCORES if name in frame and frame[name].notna().any()]
    main = next((name for name in _MAPS if name in scores), None)
    if main is None:
        return None
    summary = summarise(frame, scores=scores, reference=comparison.reference)
    lines: dict[str, dict[str, dict[str, Any]]] = {}
    for line in summary[summary["seeds"] > 0].to_dict("records"):
        lines.setdefault(line["row"], {})[line["score"]] = {str(key): value for key, value in line.items()}
    scored = {row: own for row, own in lines.items() if main in own}
    compared = [row for row, own in scored.items() if own[main]["reference"] in scored]
    row = max(compared or scored, key=lambda name: scored[name][main]["mean"])
    return _Finding(row, main, scored[row], scored.get(scored[row][main]["reference"], {}), len(scored))


def _about_maps(finding: _Finding, threshold: str) -> str:
    """How well the maps score, at the threshold of the config and at the tuned one."""
    what, tuned = _MAPS[finding.main]
    best = f", the highest of {counted(finding.beside, 'row')}" if finding.beside > 2 and finding.other else ""
    row = _quoted(finding.row) + best
    at = f" at the background threshold {threshold}" if threshold and finding.main != f"{SEG}_{MIOU}" else ""
    compared = _against(finding, finding.main, named=True)
    said = f"With {row}, {what} scores {_value(finding, finding.main)} mIoU{at}{compared}"
    if tuned in finding.own:
        said += f"; at a threshold tuned on training images, {_value(finding, tuned)}{_against(finding, tuned)}"
    return said


def _about_tokens(finding: _Finding) -> str:
    """How alike the patch tokens are in the last block."""
    said = f"The patch tokens of its last block have a mean |cos| of {_value(finding, _SIMILARITY)}"
    return said + _against(finding, _SIMILARITY)


def _value(finding: _Finding, score: str) -> str:
    """A mean, with its standard deviation where several runs of one row are all there is."""
    line, shown = finding.own[score], SCORES[score]
    spread = f" ± {shown.factor * line['sd']:.{shown.digits}f}" if line["seeds"] > 1 and not finding.other else ""
    return f"{shown.factor * line['mean']:.{shown.digits}f}{spread}" + _PERCENT * (shown.factor == 100)


def _against(finding: _Finding, score: str, *, named: bool = False) -> str:
    """The difference to the reference, in points or as it is: paired with its interval, or of two means."""
    if score not in finding.other:
        return ""
    line, other, shown = finding.own[score], finding.other[score], SCORES[score]
    level = f"{shown.factor * other['mean']:.{shown.digits}f}" + _PERCENT * (shown.factor == 100)
    level = f"{_quoted(line['reference'])} with {level}" if named else level
    if not line["pairs"]:
        return f" (against {level})"
    by, low, high = (f"{shown.factor * line[key]:+.{shown.digits}f}" for key in ("difference", "low", "high"))
    unit = " points" if shown.factor == 100 else ""
    if line["pairs"] == 1:
        return f" ({by}{unit} against {level})"
    chance = ", which may be chance" if line["low"] <= 0 <= line["high"] else ""
    return f" ({by}{unit} [{low}, {high}] against {level}{chance})"


def _quoted(name: str) -> str:
    """A name in quotes where it would not read as one word of a sentence."""
    return f'"{name}"' if "," in name else name


def _caveat(finding: _Finding) -> str:
    """How far the sentences carry."""
    own, other = finding.own[finding.main], finding.other.get(finding.main)
    if other is None:
        if own["seeds"] == 1:
            return "; one run: no statement about more than this run"
        return f"; ± is one standard deviation over {counted(own['seeds'], 'run')} that differ in the seed"
    if own["pairs"] > 1:
        best = " the highest of several is partly luck, and" if finding.beside > 2 else ""
        return f";{best} brackets are 95 % intervals of the mean difference over {counted(own['pairs'], 'seed')}"
    if max(own["seeds"], other["seeds"]) == 1:
        return "; one run each: no statement about more than these runs"
    common = counted(own["pairs"], "common seed") if own["pairs"] else "no common seed"
    return f"; {common}, so the difference has no interval"


def _threshold(comparison: Comparison) -> str:
    """The background threshold of the configs, "" where they differ."""
    thresholds = {run.config.background_threshold for run in comparison.runs}
    return f"{thresholds.pop():g}" if len(thresholds) == 1 else ""
