"""Many runs: notebooks without a screen, grids, workers, executors."""
