"""What ctc_parts_fresh measures beyond its grid: what ctc_parts does. `python -m toco_lab study ctc_parts_fresh`."""

import runpy
from pathlib import Path

from toco_lab.reports.studies import Study, write_results

PARTS = runpy.run_path(str(Path(__file__).parent.parent / "ctc_parts" / "make.py"))


def write(study: Study, root: Path) -> str:
    """Table, summary, and every run a dot."""
    return write_results(study, root, measures=PARTS["measures"])
