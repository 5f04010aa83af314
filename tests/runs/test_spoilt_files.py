"""Files of a run with any JSON value in place of the real one: named, or read; the other runs are listed."""

import json
import shutil

import pytest
from helpers.finished_runs import make_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toco_lab.config import Config
from toco_lab.runs.listing import list_runs
from toco_lab.runs.run_dir import STATES, RunDir

FEW = settings(
    max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
KEYS = st.sampled_from(["state", "step", "start", "steps", "process", "cam", "w_ptc"])
ANY = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner | st.sampled_from(STATES), max_size=3),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    make_run(root, name="sound")
    shutil.copytree(root / "sound", root / "spoilt")
    return root


def written(runs, name: str, text: str) -> RunDir:
    """The spoilt run with one file replaced, and all others sound."""
    for path in (runs / "sound").glob("*.json"):
        shutil.copy(path, runs / "spoilt" / path.name)
    (runs / "spoilt" / name).write_text(text, encoding="utf-8")
    return RunDir(runs / "spoilt")


@FEW
@given(value=ANY)
def test_a_status_of_any_value_is_named_or_has_a_state(runs, value):
    try:
        status = written(runs, "status.json", json.dumps(value)).status()
    except ValueError as error:
        assert "status.json" in str(error) and "expected" in str(error)
    else:
        assert status | value == status or "NaN" in json.dumps(value)
        assert status["state"] in STATES


@FEW
@given(value=ANY)
def test_a_config_of_any_value_is_named_or_read(runs, value):
    try:
        cfg = written(runs, "config.json", json.dumps(value)).config()
    except ValueError as error:
        assert "config.json" in str(error)
    else:
        assert Config.from_json(cfg.to_json()) == cfg and isinstance(value, dict)


@FEW
@given(name=st.sampled_from(["status.json", "env.json", "config.json", "protocol.json"]), value=ANY)
def test_a_listing_shows_the_sound_run_whatever_the_other_holds(runs, name, value):
    written(runs, name, json.dumps(value))
    table = list_runs(runs, everything=True).set_index("run")
    assert table.loc["sound", "state"] == "done" and list(table.index) == ["sound", "spoilt"]
    assert table.loc["spoilt", "state"] in (*STATES, "stopped", "unreadable")
