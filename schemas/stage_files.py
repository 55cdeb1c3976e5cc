"""What the files and folders that a stage writes, and others read, are called.

They lie here, below all that writes or reads them, so that a stage which reads a file need not look at the code that made it.
"""

SUMMARY = "summary.json"
"""In an attempt's folder: what its pipeline reported."""

USER_TOWER = "user_tower"
ITEM_TOWER = "item_tower"
FEATURES_FILE = "features.json"
"""In the item tower's folder: how features are encoded."""
CURVES_FILE = "curves.json"
CURVES_CHART = "curves.svg"
"""In a release's folder: the same as a chart."""
TENSORBOARD = "tensorboard"
"""Logs of each attempt, which no manifest names: they hold the time of day."""

INDEX_FOLDER = "scann"
"""In a shard's folder, beside the id map."""
ID_MAP_FILE = "items.arrow"
ITEMS_OF_SHARDS = "shard_items"
"""What the catalogue says of the items of each shard: part i is shard i."""
BLOCKED = "blocked"
"""The folder of the items of the catalogue that must not be recommended."""

TRIALS = "trials"
"""The table of a sweep, or of the tuning of an index."""
TRIALS_CHART = "trials.svg"
"""In the stage's folder, drawn from the table when the stage has ended."""
WINNER_FILE = "winner.yaml"
TUNED_FILE = "tuned.yaml"
