"""What ctc_parts_fresh measures beyond its grid, as ctc_parts does. Run by `python -m toco_lab study ctc_parts_fresh`."""

import runpy
from pathlib import Path

write = runpy.run_path(str(Path(__file__).parent.parent / "ctc_parts" / "make.py"))["write"]
