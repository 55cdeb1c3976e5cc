"""Measured comparisons, each one command; every figure is a ratio of things measured side by side in one run."""
