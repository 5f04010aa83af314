"""Drawing alone: arrays and tables in, a figure out; no torch, nothing of the other rooms."""
