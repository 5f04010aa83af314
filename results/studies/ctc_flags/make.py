"""What ctc_flags measures beyond its grid: over-activation, and whether positive and negative crops part.

Run by `python -m toco_lab study ctc_flags`.
"""

from pathlib import Path

from toco_lab.reports.contrast import contrast_measures
from toco_lab.reports.studies import Study, write_results


def write(study: Study, root: Path) -> str:
    """Table, summary and figure of the finished runs."""
    return write_results(study, root, measures=contrast_measures)
