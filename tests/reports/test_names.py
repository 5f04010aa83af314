"""What runs are called: short, told apart, and what a person would say."""

from helpers.finished_runs import make_run

from toco_lab.presets import BASELINE
from toco_lab.reports.comparison import compare
from toco_lab.reports.names import row_names, run_names


def names(runs):
    rows = row_names(runs)
    return list(run_names(runs, rows).values())


def test_a_preset_and_what_differs(tmp_path):
    runs = [
        make_run(tmp_path),
        make_run(tmp_path, **BASELINE),
        make_run(tmp_path, w_ctc=0.5, steps=200),
        make_run(tmp_path, w_ptc=0.0, refine=False, steps=200, train_images=50),
    ]
    assert names(runs) == [
        "toy", "toy baseline", "toy, CTC weight 0.5, steps 200", "toy, no PTC, train images 50, 2 more",
    ]  # fmt: skip
    assert names(runs[2:3]) == ["toy, CTC weight 0.5, steps 200"]


def test_what_all_runs_share_is_in_no_name(tmp_path):
    runs = [make_run(tmp_path, steps=200, w_ptc=weight) for weight in (1.5, 0.0)]
    assert names(runs) == ["toy", "toy, no PTC"]


def test_seeds_are_named_where_a_row_has_several(tmp_path):
    runs = [make_run(tmp_path, seed=seed, w_ptc=weight) for weight in (1.5, 0.0) for seed in (0, 1)]
    assert names([*runs[:2], runs[3]]) == ["toy, seed 0", "toy, seed 1", "toy, no PTC"]
    assert compare(runs).frame["row"].tolist() == ["toy", "toy", "toy, no PTC", "toy, no PTC"]


def test_a_name_that_somebody_gave_is_kept(tmp_path):
    runs = [make_run(tmp_path, name="mine"), make_run(tmp_path, name="before", w_ptc=0.0)]
    assert names(runs) == ["mine", "before"] and set(row_names(runs).values()) == {"mine", "before"}
    seeds = [make_run(tmp_path, name=f"try-{seed}", seed=seed, steps=200) for seed in (0, 1)]
    assert names(seeds) == ["try-0", "try-1"] and set(row_names(seeds).values()) == {"toy, steps 200"}


def test_configs_that_no_few_words_tell_apart_have_their_digest(tmp_path):
    many = {"w_ptc": 0.0, "w_ctc": 0.0}
    runs = [make_run(tmp_path, steps=steps, **many) for steps in (200, 300)] + [make_run(tmp_path)]
    found = names(runs)
    assert found[0] == f"toy, no PTC, no CTC, 1 more ({runs[0].config().digest()})" and found[2] == "toy"
    assert len(set(found)) == 3


def test_the_same_run_twice_has_its_folder(tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path, name="again")]
    assert names(runs) == ["toy, seed 0", "again"]
