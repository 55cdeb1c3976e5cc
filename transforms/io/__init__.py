"""Reads, writes and partitions the blocks of a pipeline, and counts them."""
