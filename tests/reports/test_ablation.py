"""Ablations: rows named, spread and paired comparison against their formulas, the text of the tables."""

import math

import numpy as np
import pandas as pd
import pytest

from toco_lab.config import Config
from toco_lab.reports.ablation import protocol_text, summarise, wide_table
from toco_lab.runs.run_dir import RunDir
from toco_lab.runs.scores import SCORES, rows_of_runs, run_scores

# two-sided 95 % quantiles of Student's distribution, from a printed table: degrees of freedom -> t
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


def table(**rows):
    """A frame of runs: row -> {seed: cam_mIoU}."""
    lines = [(row, seed, value) for row, values in rows.items() for seed, value in values.items()]
    return pd.DataFrame(lines, columns=["row", "seed", "cam_mIoU"])


def make_run(root, *, seed, scores=None, similarity=None, **changes):
    run = RunDir.create(Config.preset("smoke").replace(seed=seed, **changes), root)
    if scores:
        rows = [{"target": name, "class": "mIoU", "iou": value} for name, value in scores.items()]
        run.write_table("evaluation", pd.DataFrame(rows))
    if similarity:
        frame = pd.DataFrame(similarity, columns=["site", "metric", "variant", "layer", "value"])
        run.write_table("smoothing", frame)
    return run


def test_mean_spread_and_interval_by_the_formulas():
    base, other = {0: 0.30, 1: 0.34, 2: 0.26}, {0: 0.50, 1: 0.58, 2: 0.51}
    summary = summarise(table(plain=base, ptc=other), reference="plain").set_index("row")
    assert summary.loc["plain", "mean"] == pytest.approx(0.30)
    assert summary.loc["plain", "sd"] == pytest.approx(math.sqrt((0 + 0.04**2 + 0.04**2) / 2))
    assert math.isnan(summary.loc["plain", "difference"]) and summary.loc["plain", "pairs"] == 0
    differences = [0.20, 0.24, 0.25]
    mean = sum(differences) / 3
    spread = math.sqrt(sum((value - mean) ** 2 for value in differences) / 2)
    row = summary.loc["ptc"]
    assert (row["difference"], row["pairs"], row["reference"]) == (pytest.approx(mean), 3, "plain")
    half = STUDENT[2] * spread / math.sqrt(3)
    assert (row["low"], row["high"]) == (pytest.approx(mean - half, abs=1e-4), pytest.approx(mean + half, abs=1e-4))


@pytest.mark.parametrize("pairs", STUDENT.keys())
def test_interval_holds_the_truth_as_often_as_it_says(pairs):
    rng, hits = np.random.default_rng(pairs), 0
    for _ in range(400):
        noise, shared = rng.normal(0, 0.02, pairs + 1), rng.normal(0.5, 0.2, pairs + 1)
        frame = table(a=dict(enumerate(shared)), b=dict(enumerate(shared + 0.1 + noise)))
        row = summarise(frame).set_index("row").loc["b"]
        hits += row["low"] <= 0.1 <= row["high"]
    assert 0.92 <= hits / 400 <= 0.98  # the spread of 0.2 between seeds does not count: it cancels in the pairs


def test_only_seeds_that_both_rows_have_are_paired():
    frame = table(a={0: 0.1, 1: 0.2, 2: 0.3}, b={1: 0.5, 2: 0.5, 3: 0.9, 4: np.nan})
    row = summarise(frame).set_index("row").loc["b"]
    assert (row["seeds"], row["pairs"]) == (3, 2)  # an unfinished run does not count
    assert row["difference"] == pytest.approx((0.3 + 0.2) / 2)


def test_one_seed_has_no_spread_and_no_interval():
    summary = summarise(table(a={0: 0.1}, b={0: 0.25}, c={1: 0.5})).set_index("row")
    assert summary["sd"].isna().all() and summary["low"].isna().all()
    assert (summary.loc["b", "difference"], summary.loc["c", "pairs"]) == (pytest.approx(0.15), 0)
    wide = wide_table(summary.reset_index())
    assert wide.loc["b"].tolist() == ["1", "25.0", "+15.0 (one seed)"] and wide.loc["c", "difference, final CAM"] == ""


def test_a_run_that_comes_twice_counts_once():
    frame = pd.concat([table(a={0: 0.1, 1: 0.3}), table(a={1: 0.3})])
    assert summarise(frame)["seeds"].tolist() == [2]


def test_each_row_may_have_its_own_reference():
    frame = table(a={0: 0.1, 1: 0.1}, b={0: 0.2, 1: 0.3}, c={0: 0.5, 1: 0.5}, d={0: 0.4, 1: 0.4})
    summary = summarise(frame, reference={"b": "a", "d": "c"}).set_index("row")
    assert summary["reference"].tolist() == ["", "a", "", "c"]
    assert summary["difference"].fillna(0).tolist() == pytest.approx([0, 0.15, 0, -0.1])
    wide = wide_table(summary.reset_index())
    assert wide["against"].tolist() == ["", "a", "", "c"]
    assert wide.loc["d", "difference, final CAM"] == "-10.0 [-10.0, -10.0]*"


def test_text_of_the_table():
    frame = table(base={0: 0.30, 1: 0.32}, same={0: 0.31, 1: 0.31}).assign(similarity_last=[0.5, 0.6, 0.25, 0.25])
    wide = wide_table(summarise(frame))
    assert wide.columns.tolist() == [
        "seeds", "final CAM", "difference, final CAM", "similarity, last block", "difference, similarity, last block",
    ]  # fmt: skip
    assert wide.loc["base"].tolist() == ["2", "31.0 ± 1.4", "", "0.55 ± 0.07", ""]
    half = STUDENT[1] * 1.4142136 / math.sqrt(2)
    assert wide.loc["same", "difference, final CAM"] == f"+0.0 [{-half:+.1f}, {half:+.1f}]"


def test_rows_over_other_numbers_of_images_say_so():
    frame = table(base={0: 0.30, 1: 0.32}, few={0: 0.31, 1: 0.31}, one={0: 0.4, 1: np.nan})
    frame = frame.assign(similarity_last=0.5, scored_images=[100, 100, 20, "20 to 50", 100, None], smoothing_images=20)
    wide = wide_table(summarise(frame))
    assert wide["images"].tolist() == [
        "100; 20 (similarity, last block)", "20 to 50; 20 (similarity, last block)", "100; 20 (similarity, last block)",
    ]  # fmt: skip
    assert wide.loc["one", "final CAM"] == "40.0 (1 seed)" and wide.loc["one", "seeds"] == "1 to 2"
    text = protocol_text([Config.preset("toy")], frame)
    assert "points over 20 to 100 images of val: not all rows and scores over the same number" in text
    assert "residual stream, over 20 images. Differences" in text
    assert "images" not in wide_table(summarise(table(a={0: 0.1})))  # of a table that does not say it


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"scores": ["cam"]}, "no score cam in the table; it has row, seed, cam_mIoU"),
        ({"reference": "plane"}, "reference 'plane' is no row; there are: a, b"),
        ({"reference": {"b": "x"}}, "reference 'x' is no row"),
        ({"confidence": 95}, "confidence must lie between 0 and 1, got 95"),
    ],
)
def test_wrong_questions_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        summarise(table(a={0: 0.1}, b={0: 0.2}), **arguments)
    with pytest.raises(ValueError, match="no score at all in the table; it has row, seed"):
        summarise(table(a={0: 0.1})[["row", "seed"]])


def test_runs_make_rows_by_what_differs_in_their_configs(tmp_path):
    runs = [
        make_run(tmp_path / "a", seed=seed, scores={"cam": 0.1 * seed + weight}, w_ptc=weight, log_every=1 + seed)
        for weight in (0.5, 0.0)
        for seed in (0, 1)
    ]
    frame = rows_of_runs(runs)
    assert frame["row"].tolist() == ["w_ptc=0.5", "w_ptc=0.5", "w_ptc=0.0", "w_ptc=0.0"]  # log_every makes no row
    assert frame["seed"].tolist() == [0, 1, 0, 1] and frame["cam_mIoU"].tolist() == pytest.approx([0.5, 0.6, 0.0, 0.1])
    assert frame["run"].tolist() == [run.name for run in runs] and set(frame["state"]) == {"new"}
    assert rows_of_runs(runs[:2])["row"].tolist() == ["smoke", "smoke"]
    assert rows_of_runs([]).columns.tolist() == ["row", "seed", "state", "run"]


def test_cosines_are_taken_after_the_first_and_the_last_block(tmp_path):
    usual, pair = ("pairwise cosine", "absolute, off-diagonal"), "absolute, true label"
    lines = [("after block", *usual, layer, value) for layer, value in ((1, 0.2), (1, 0.4), (4, 0.8))]
    lines += [("after attention", *usual, 5, 0.99), ("after block", "pairwise cosine", "signed", 4, 0.1)]
    lines += [
        ("after block", f"{kind} cosine", pair, 4, value) for kind, value in (("positive", 0.9), ("negative", 0.3))
    ]
    run = make_run(tmp_path, seed=0, scores={"cam": 0.5}, similarity=lines)
    expected = {"cam_mIoU": 0.5, "similarity_first": 0.3, "similarity_last": 0.8, "positive_cosine": 0.9}
    assert run_scores(run) == pytest.approx(expected | {"negative_cosine": 0.3})
    assert set(run_scores(run)) <= set(SCORES)
    assert run_scores(make_run(tmp_path, seed=1)) == {}


def test_protocol_names_what_varies():
    base = Config.preset("toy")
    frame = table(a={0: 0.1, 1: 0.2}, b={0: 0.1})
    text = protocol_text([base, base.replace(steps=200)], frame)
    assert "varying steps of 8; 1 to 2 seeds" in text and "over 100 images of val" in text and "threshold 0.5" in text
