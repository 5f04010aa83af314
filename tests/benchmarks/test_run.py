"""Benchmarks: what they share: turns, growth, tables, the command."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.benchmarks import tables

from benchmarks import gpu_step, measure, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("exponent", [0, 1, 1.7, -0.5])
def test_growth_exponent(exponent):
    sizes = np.array([3.0, 10, 50, 70])
    assert measure.growth_exponent(sizes, 4.2 * sizes**exponent) == pytest.approx(exponent, abs=1e-12)


def test_growth_exponent_is_the_least_squares_slope():
    # log2: x = 0, 1, 2 and y = 0, 2, 1, mean 1: slope (-1 * -1 + 1 * 0) / 2
    assert measure.growth_exponent([1, 2, 4], [1, 4, 2]) == pytest.approx(0.5)


def test_calls_take_turns_and_the_first_round_does_not_count(clock):
    spends, order = {"a": iter([100, 2, 8, 3]), "b": iter([1, 1, 2, 3])}, []

    def spend(name):
        order.append(name)
        clock[0] += next(spends[name])

    seconds = measure.rounds({name: lambda name=name: spend(name) for name in "ab"}, 3)
    assert "".join(order) == "ab" * 4
    assert seconds.to_dict("list") == {"a": [2, 8, 3], "b": [1, 2, 3]}
    assert measure.ratio(seconds, "a", "b") == 2  # the median of 2, 4 and 1; that of the medians is 1.5


def test_new_rows_take_the_place_of_old_ones(tmp_path):
    path = tmp_path / "table.csv"
    pd.DataFrame({"setting": ["c", "a", "a"], "value": [1, 2, 3]}).to_csv(path, index=False)
    new = pd.DataFrame({"setting": ["b", "a"], "value": [4, 5]})
    both = run.merged(path, new, list("abc"))
    assert list(zip(both["setting"], both["value"], strict=True)) == [("a", 5), ("b", 4), ("c", 1)]
    assert run.merged(tmp_path / "none.csv", new, list("abc"))["value"].tolist() == [5, 4]


def test_table_names_its_origin():
    about = run.origin("crf", "photo", 7)
    assert about["command"] == "python -m benchmarks crf/photo --repeats 7"
    assert f"torch {torch.__version__.partition('+')[0]}" in about["versions"]
    case = run.Case(about="Numbers.", settings={"photo": 1}, measure=None, section=lambda rows: list(rows["value"]))
    rows = pd.DataFrame([{"setting": "photo", "value": "many", "repeats": 7} | about])
    text = run.markdown(case, rows)
    assert text.startswith("Numbers.\n\n## photo\n\nmany\n\n7 rounds; ")
    assert all(value in text for value in about.values())
    assert run.markdown_table(["a", "b"], [["1", 2]]) == ["| a | b |", "|---|---|", "| 1 | 2 |"]


@pytest.mark.parametrize("name", run.CASES)
def test_every_case_says_what_it_has_measured(name, tmp_path):
    """The Markdown beside each table is what the case makes of it today, and every row has a setting of the case."""
    case = run.case_of(name)
    assert set(case.default) <= set(case.settings) and (ROOT / "benchmarks" / f"{name}.py").is_file()
    if (run.RESULTS / f"{name}.csv").is_file():
        table, text = tables(run.RESULTS, name)
        assert set(table["setting"]) <= set(case.settings) and text == run.markdown(case, table)
        for setting, command in zip(table["setting"], table["command"], strict=True):
            assert command == run.origin(name, setting, int(command.rpartition(" ")[2]))["command"]


def test_the_runner_takes_cases_and_settings(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(run, "CASES", ("crf", "pieces", "gpu_step"))
    monkeypatch.setattr(run, "run", lambda *arguments: asked.append(arguments) or arguments[0])
    monkeypatch.setattr(gpu_step, "CASE", replace(gpu_step.CASE, missing=lambda: "no card"))
    run.main(["pieces/vit_b", "crf", "pieces/deit_tiny", "--repeats", "4", "--out", str(tmp_path)])
    assert asked == [("pieces", ["vit_b", "deit_tiny"], 4, tmp_path), ("crf", [], 4, tmp_path)]
    asked.clear()
    run.main([])  # all that can be measured here
    assert [name for name, *_ in asked] == ["crf", "pieces"]
    assert "gpu_step: no card; left out" in capsys.readouterr().out
    for words, message in ((["crv"], "no case crv; there are: crf, pieces"), (["crf/x"], "no setting x of crf")):
        with pytest.raises(SystemExit):
            run.main(words)
        assert message in capsys.readouterr().err
