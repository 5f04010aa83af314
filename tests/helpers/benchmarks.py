"""What tests of the benchmarks share."""

from dataclasses import replace
from pathlib import Path

import pandas as pd


def with_settings(monkeypatch, case, settings: dict) -> None:
    """Replace the settings of a case by small ones."""
    monkeypatch.setattr(case, "CASE", replace(case.CASE, settings=settings, default=()))


def tables(folder: Path, name: str) -> tuple[pd.DataFrame, str]:
    """The numbers and the page that a benchmark has written."""
    return pd.read_csv(folder / f"{name}.csv"), (folder / f"{name}.md").read_text()
