"""Runs one stage: skipped when it is done, in a folder of its own, under a lease, with progress."""
