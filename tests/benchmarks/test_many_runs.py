"""Benchmark of looking at many runs."""

from benchmarks import many_runs


def test_many_runs():
    table = many_runs.measure(20, 1)
    assert len(table) == 5 and (table["cpu"] > 0).all() and (table["runs"] == 20).all()
    assert "| 20 finished runs | processor seconds |" in many_runs.section(table)
