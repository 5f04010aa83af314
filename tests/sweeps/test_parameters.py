"""Parameters of notebooks: any value reaches the notebook as it is, or is refused by name."""

import json
import math
from pathlib import Path

import nbformat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toco_lab.files import project_root
from toco_lab.sweeps.parameters import check_parameters, declared_parameters, plain

FEW = settings(
    max_examples=50, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just(Path("a"))
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)


@FEW
@given(VALUES)
def test_a_value_can_be_stored_or_its_parameter_is_named(value):
    try:
        found = plain("rate", value)
    except ValueError as error:
        assert "parameter 'rate' cannot hold" in str(error)
    else:
        assert json.loads(json.dumps(found, allow_nan=False)) == found


@FEW
@given(value=VALUES)
def test_any_default_is_read_back(tmp_path, value):
    """Text with `=`, quotes, line ends; nested lists and dicts; papermill's own reader takes the last `=`."""
    cell = nbformat.v4.new_code_cell(f"value: dict = {value!r}\nother = 1", metadata={"tags": ["parameters"]})
    path = tmp_path / "a.ipynb"
    if "PosixPath" in repr(value) or math.nan in _flat(value):
        return  # code, and no plain value
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    assert list(declared_parameters(path)) == ["value", "other"]
    assert declared_parameters(path)["value"].annotation == "dict"


def _flat(value) -> list:
    inner = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [None]
    return [value] if inner == [None] else [leaf for item in inner for leaf in _flat(item)]


@FEW
@given(data=st.data())
def test_a_spoilt_notebook_is_named_or_declares_names(tmp_path, data):
    """nbformat raises what a damaged file leads to, an UnboundLocalError among others."""
    good = (project_root() / "notebooks/04_evaluate.ipynb").read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    path = tmp_path / "spoilt.ipynb"
    path.write_bytes(good[:place] + data.draw(st.binary(max_size=3)) + good[place + data.draw(st.integers(0, 3)) :])
    try:
        found = declared_parameters(path)
    except ValueError as error:
        assert "spoilt.ipynb" in str(error)
    else:
        assert all(isinstance(name, str) for name in found)


def test_a_notebook_that_nbformat_itself_fails_at_is_named(tmp_path):
    cell = {"cell_type": "what", "source": []}
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"nbformat": 1, "nbformat_minor": 0, "metadata": {}, "cells": [cell]}))
    with pytest.raises(ValueError, match=r"a\.ipynb cannot be read as a notebook"):
        check_parameters(path, {"rate": 1})
