"""Grids: which runs they make, in which order, and what they refuse."""

import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toco_lab.commands.train import options_of_preset
from toco_lab.config import Config
from toco_lab.presets import PRESETS
from toco_lab.sweeps.grid import Grid

ROOT = Path(__file__).resolve().parents[2]


def grid(**changes) -> Grid:
    return Grid(**{"name": "test", "preset": "smoke"} | changes)


def test_rows_times_axes_times_seeds_in_order() -> None:
    rows, axes = {"plain": {"w_ctc": 0}, "full": None}, {"w_ptc": [0.0, 0.2], "aux_layer": [-2, -3]}
    made = grid(overrides={"steps": 7}, rows=rows, axes=axes, seeds=[3, 1]).runs("root")
    assert len(made) == 2 * 4 * 2
    assert [(run.row, run.seed) for run in made[:3]] == [
        ("plain, w_ptc=0.0, aux_layer=-2", 3),
        ("plain, w_ptc=0.0, aux_layer=-2", 1),
        ("plain, w_ptc=0.0, aux_layer=-3", 3),
    ]
    base = Config.preset("smoke").replace(steps=7)
    assert made[0].config == base.replace(w_ctc=0.0, w_ptc=0.0, aux_layer=-2, seed=3)
    assert made[-1].config == base.replace(w_ptc=0.2, aux_layer=-3, seed=1)
    assert made[-1].folder == Path("root/test") / made[-1].config.run_name()


def test_a_row_wins_over_the_overrides_and_is_checked_together_with_them() -> None:
    made = grid(overrides={"low_threshold": 0.9}, rows={"high": {"high_threshold": 0.95}}, seeds=3).runs()
    assert [run.seed for run in made] == [0, 1, 2]
    assert made[0].config.low_threshold == 0.9  # which the preset's high_threshold would not allow
    assert grid(overrides={"w_ptc": 0.5}, rows={"a": {"w_ptc": 0.1}}).runs()[0].config.w_ptc == 0.1


def test_a_grid_without_rows_and_axes_is_the_preset() -> None:
    (run,) = Grid(name="one", preset="smoke").runs()
    assert (run.row, run.seed, run.config) == ("smoke", 0, Config.preset("smoke"))
    assert str(run.folder.parent) == "results/sweeps/one"


def test_released_is_what_train_makes_of_it() -> None:
    rows = {"ours": {}, "theirs": {"released": True}, "mixed": {"released": True, "late_segmentation": False}}
    made = grid(overrides={"w_ptc": 0.5}, rows=rows).runs()
    options = options_of_preset("smoke")
    assert made[0].config == options(w_ptc=0.5).config()
    assert made[1].config == options(w_ptc=0.5, released=True).config() != made[0].config
    assert made[2].config == made[1].config.replace(late_segmentation=False) != made[1].config
    all_but_one = grid(overrides={"released": True}, rows={"theirs": {}, "ours": {"released": False}}).runs()
    assert [run.config for run in all_but_one] == [Config.preset("smoke").released(), Config.preset("smoke")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": {"a": {"released": "yes"}}}, "row 'a': released is true or false, of one row or of all, got 'yes'"),
        ({"axes": {"released": [True, False]}}, "axes: released is true or false"),
        ({"name": "a/b"}, "names a folder: .* got 'a/b'"),
        ({"name": ".."}, "names a folder"),
        ({"preset": "smok"}, "unknown preset 'smok', did you mean 'smoke'"),
        ({"preset": ["smoke"]}, r"unknown preset \['smoke'\]"),
        ({"seeds": 1_000_000_000}, "1,000,000,000 runs asked for; .* 100,000 at most"),
        ({"seeds": 10**30}, "runs asked for"),
        ({"seeds": 1000, "axes": {"w_ptc": list(range(101))}}, "101,000 runs asked for"),
        ({"axes": {"w_ptc": [0, math.nan]}}, "w_ptc must be a finite number, got nan"),
        ({"notebook": "a.ipynb", "parameters": {"rate": math.inf}}, "parameter 'rate' cannot hold inf"),
        ({"notebook": ["a.ipynb"]}, "notebook must be the path of a file"),
        ({"overrides": {"w_ptk": 0}}, "unknown config field 'w_ptk', did you mean 'w_ptc'"),
        ({"overrides": [1]}, "overrides must be names"),
        ({"overrides": {"seed": 3}}, "overrides may not set seed; give `seeds`"),
        ({"rows": {"a": {"preset_name": "toy"}}}, "row 'a' may not set preset_name; give `preset`"),
        ({"rows": {"a": {"w_ptc": "0"}}}, "grid 'test', a: config field 'w_ptc' must be float, got '0'"),
        ({"rows": {"a": {}, "b": {"low_threshold": 0.9}}}, "'test', b: config: .*low_threshold"),
        ({"rows": {False: {}}}, "rows must be names .*quote words"),
        ({"rows": {"a": 3}}, "row 'a' must be names"),
        ({"axes": {"w_ptc": 0.1}}, "axis 'w_ptc' must be a list of values, got 0.1"),
        ({"axes": {"w_ptc": []}}, "axis 'w_ptc' must be a list"),
        ({"axes": {"ptc_similarity": "raw"}}, "axis 'ptc_similarity' must be a list"),
        ({"axes": {"w_ptc": [0.1, 0.1]}}, "axis 'w_ptc' has a value twice"),
        ({"axes": {"w_ptk": [0.1]}}, "did you mean 'w_ptc'"),
        ({"axes": {"seed": [1]}}, "axes may not set seed"),
        ({"axes": {"w_ptc": [0.1]}, "rows": {"a": {"w_ptc": 0.2}}}, "w_ptc is set by row 'a' and by an axis"),
        ({"seeds": 0}, "seeds must be a number of seeds, at least 1"),
        ({"seeds": True}, "seeds must be"),
        ({"seeds": "01"}, "seeds must be"),
        ({"seeds": [0, 1.5]}, "seeds must be"),
        ({"seeds": [0, 0]}, "a seed is given twice"),
        ({"seeds": [-1]}, "seed must not be negative"),
        ({"folder": "../a"}, "names a folder: .* got '../a'"),
        ({"rows": {"a": {}, "b": {}}, "reference": "c"}, "reference: 'c' is no row; there are: a, b"),
        ({"rows": {"a": {}, "b": {}}, "reference": {"b": "x"}}, "reference: 'x' is no row"),
        ({"parameters": {"num_images": 3}}, "parameters need a notebook"),
        ({"notebook": "a.ipynb", "parameters": {"run_dir": "x"}}, "the grid itself gives the notebook its run_dir"),
    ],
)
def test_what_a_grid_refuses(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid(**changes)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_a_grid_in_another_encoding_is_named_with_the_remedy(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text("name: a\npreset: smoke\nabout: café\n", encoding=encoding)
    with pytest.raises(ValueError, match=r"grid.yaml, line 3: byte 0xe9 is not UTF-8.*Save the file again as UTF-8"):
        Grid.from_yaml(path)
    for readable in ("utf-8-sig", "utf-16"):  # a byte order mark says which
        path.write_text("name: a\npreset: smoke\nabout: café\n", encoding=readable)
        assert Grid.from_yaml(path).about == "café"


def test_yaml_and_keywords_give_one_grid(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(
        "name: a\npreset: smoke\nabout:\noverrides: {learning_rate: 1e-4, weight_decay: 1E-2}\nrows:\n  one:\n"
        "  'off': {cam_scales: [1, 0.5]}\naxes: {w_ptc: [0, .5e-1]}\nseeds: [2]\n"
    )
    made = Grid.from_yaml(path)
    assert made == Grid(
        name="a", preset="smoke", overrides={"learning_rate": 1e-4, "weight_decay": 0.01}, seeds=(2,),
        rows={"one": {}, "off": {"cam_scales": [1, 0.5]}}, axes={"w_ptc": (0, 0.05)},
    )  # fmt: skip
    path.write_text(made.to_text())
    assert Grid.from_yaml(path) == made
    path.write_text(grid(axes={"w_ptc": np.linspace(0, 1, 3)}).to_text())
    assert [run.config.w_ptc for run in Grid.from_yaml(path).runs()] == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\npreset: smoke\nseed: 1", r"grid.yaml: unknown key 'seed', did you mean 'seeds'"),
        ("name: a\npreset: smoke\nzzz: 1", "unknown key 'zzz'; there are: name, preset"),
        ("preset: smoke", "grid.yaml: no name"),
        ("name: a\nname: b\npreset: smoke", "'name' comes twice"),
        ("name: a\npreset: smoke\nrows: {a: {w_ptc: 0}, a: {}}", "'a' comes twice"),
        ("name: a\npreset: smoke\nrows: {no: {}}", "grid.yaml: .*quote words like no"),
        ("- a", "must hold `key: value` lines, got list"),
        ("a: [", "cannot be read"),
        ("name: a\npreset: smoke\nabout: 3", "grid.yaml: grid 'a': about must be text, in quotes say, got 3"),
        ("name: yes\npreset: smoke", "grid.yaml: the name of a grid .*got True"),
        ("name: " + "a" * 101 + "\npreset: smoke", "grid.yaml: the name of a grid .*up to 100 letters"),
        ("name: a\npreset: smoke\naxes: {w_ptc: [1, 1.0]}", "grid.yaml: grid 'a': axis 'w_ptc' has a value twice"),
        ("name: a\npreset: smoke\naxes: {w_ptc: []}", "grid.yaml: grid 'a': axis 'w_ptc' must be a list of values"),
        ("name: a\npreset: smoke\nseeds: 1" + "0" * 400, r"grid.yaml: .*more than 10\*\*15 runs asked for"),
        ("a: " + "[" * 5000, "grid.yaml cannot be read"),
        ("name: a\npreset: [smoke]", "grid.yaml: .*unknown preset"),
        ("name: a\npreset: smoke\nseeds: 1000000000", "grid.yaml: .*1,000,000,000 runs"),
        ("name: a\npreset: smoke\naxes: {w_ptc: [.nan]}", "grid.yaml: .*w_ptc must be a finite number"),
        ("name: a\npreset: smoke\noverrides: {w_ptc: x}", "grid.yaml: grid 'a': config field 'w_ptc' must be float"),
    ],
)
def test_what_a_file_refuses(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        Grid.from_yaml(tmp_path / "grid.yaml")


KEPT = [ROOT / "docs" / "smoke.yaml", *sorted((ROOT / "results" / "studies").glob("*/grid.yaml"))]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.parent.name)
def test_the_grids_of_this_project_can_be_read(path: Path) -> None:
    made = Grid.from_yaml(path)
    assert made.name in (path.stem, path.parent.name) and made.about and made.preset in PRESETS
    assert made.notebook is None or (ROOT / made.notebook).is_file()


def test_the_first_row_is_the_reference_unless_said(tmp_path: Path) -> None:
    assert grid(rows={"a": {}, "b": {}}).reference == "a"
    assert grid(axes={"aux_layer": [-3, -2]}).reference == "aux_layer=-3"
    assert grid(rows={"a": {}, "b": {}}, reference={"a": "b"}).reference == {"a": "b"}


# --- properties -------------------------------------------------------------------------------------------------------


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
KEYS = (
    "name",
    "preset",
    "about",
    "folder",
    "reference",
    "overrides",
    "rows",
    "axes",
    "seeds",
    "notebook",
    "parameters",
)


@settings(
    max_examples=120, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(key=st.sampled_from(KEYS), value=ANY)
def test_any_value_of_a_key_makes_runs_or_names_the_file(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"name": "test", "preset": "smoke", "seeds": 2} | {key: value}), encoding="utf-8")
    try:
        found = Grid.from_yaml(path)
    except ValueError as error:
        assert "grid.yaml" in str(error) and "NoneType" not in str(error)
    else:
        assert 0 < len(found.runs()) <= 100_000


@pytest.mark.parametrize("key", ["name", "preset"])
def test_a_key_without_a_value_is_the_same_as_no_key(tmp_path: Path, key: str) -> None:
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"name": "test", "preset": "smoke"} | {key: None}))
    with pytest.raises(ValueError, match=rf"grid\.yaml: no {key}$"):
        Grid.from_yaml(tmp_path / "grid.yaml")
