"""How fast: one runner (`run`), a file per case, the table of targets (`summary`). `python -m benchmarks --help`."""
