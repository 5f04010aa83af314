"""The two sentences that a report opens with, against numbers that were worked out by hand."""

import pytest
from helpers.finished_runs import make_run

from toco_lab.reports.comparison import compare
from toco_lab.reports.found import found_sentences
from toco_lab.reports.sections import Report


def opened(runs):
    return [sentence.replace("\u00a0", " ") for sentence in found_sentences(compare(runs))]


def similar(run, value):
    """Give a run a similarity of the last block."""
    table = run.read_table("smoothing")
    run.write_table("smoothing", table.assign(value=value))
    return run


def with_tuned(run, score):
    table, protocol = run.read_table("evaluation"), run.read_json("protocol")
    table.loc[len(table)] = ("cam_tuned", "mIoU", score)
    run.write_table("evaluation", table)
    run.write_json("protocol", protocol | {"cam_tuned": protocol["cam"] | {"background_threshold": 0.3}})
    return run


def test_one_run_makes_no_statement_about_others(tmp_path):
    run = with_tuned(similar(make_run(tmp_path, level=0.6), 0.8), 0.65)
    assert opened([run]) == [
        "With toy, the final CAM scores 60.0 % mIoU at the background threshold 0.5; at a threshold tuned on training "
        "images, 65.0 %.",
        "The patch tokens of its last block have a mean |cos| of 0.80; one run: no statement about more than this run.",
    ]


def test_two_runs_are_compared_without_an_interval(tmp_path):
    runs = [make_run(tmp_path, level=0.45, w_ptc=0.0), make_run(tmp_path, level=0.6)]
    first, second = opened([similar(run, value) for run, value in zip(runs, (0.9, 0.7), strict=True)])
    assert first == (
        'With toy, the final CAM scores 60.0 % mIoU at the background threshold 0.5 (+15.0 points against "toy, no '
        'PTC" with 45.0 %).'
    )
    assert second == (
        "The patch tokens of its last block have a mean |cos| of 0.70 (-0.20 against 0.90); one run each: no statement "
        "about more than these runs."
    )


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        # mean 20, sd 1 over three pairs: Student's t of 2 degrees, 4.303, times 1 / sqrt(3) is 2.48
        ((0.19, 0.20, 0.21), "(+20.0 points [+17.5, +22.5] against toy with 40.0 %)"),
        # mean 2, sd 4: half-width 9.94
        ((-0.02, 0.02, 0.06), "(+2.0 points [-7.9, +11.9] against toy with 40.0 %, which may be chance)"),
    ],
)
def test_paired_seeds_have_an_interval(tmp_path, gains, said):
    plain = [make_run(tmp_path, level=0.4, seed=seed) for seed in range(3)]
    other = [make_run(tmp_path, level=0.4 + gain, seed=seed, w_ptc=0.5) for seed, gain in enumerate(gains)]
    first, second = opened([*plain, *other])
    assert first.startswith('With "toy, PTC weight 0.5", the final CAM scores') and first.endswith(f"{said}.")
    assert second.endswith("; brackets are 95 % intervals of the mean difference over 3 seeds.")


def test_seeds_of_one_row_have_a_spread(tmp_path):
    runs = [make_run(tmp_path, level=level, seed=seed) for seed, level in enumerate((0.59, 0.60, 0.61))]
    first, second = opened(runs)
    assert first == "With toy, the final CAM scores 60.0 ± 1.0 % mIoU at the background threshold 0.5."
    assert second.endswith("; ± is one standard deviation over 3 runs that differ in the seed.")


def test_the_highest_of_several_rows_is_partly_luck(tmp_path):
    runs = [
        make_run(tmp_path, level=level + seed / 100, seed=seed, w_ptc=weight)
        for weight, level in ((0.0, 0.4), (0.5, 0.5), (1.0, 0.6))
        for seed in (0, 1)
    ]
    first, second = opened(runs)
    assert first.startswith('With "toy, PTC weight 1", the highest of 3 rows, the final CAM scores 60.5 % mIoU')
    assert 'against "toy, no PTC" with 40.5 %' in first
    assert "; the highest of several is partly luck, and brackets are 95 % intervals" in second


def test_seeds_that_are_not_shared_make_no_pair(tmp_path):
    runs = [make_run(tmp_path, level=0.6), make_run(tmp_path, level=0.45, w_ptc=0.0, seed=3)]
    first, second = opened(runs)
    assert first.endswith("0.5 (against toy with 60.0 %).") and second.endswith(
        "no statement about more than these runs."
    )
    more = [*runs, make_run(tmp_path, level=0.6, seed=1), make_run(tmp_path, level=0.45, w_ptc=0.0, seed=4)]
    assert opened(more)[1].endswith("; no common seed, so the difference has no interval.")


def test_runs_without_a_score_say_so(tmp_path):
    run = make_run(tmp_path)
    (run.path / "evaluation.csv").unlink()
    (run.path / "smoothing.csv").unlink()
    (part,) = Report(compare([run])).found()
    assert "No run has a score yet: 1 run, 1 finished." in part.data["text/markdown"]
