"""Searches the shards of an index, merges what they find, and measures rankings."""
