"""Embeds users and items, builds and loads the shards of the index, and calibrates or tunes how they are searched."""
