"""Fit a model: optimiser, one step, the loop that can be killed, checkpoints, several processes."""
