"""Names of the datasets, folders and files that stages write beside tables of Parquet, and others read."""

USER_TOWER = "user_tower"
ITEM_TOWER = "item_tower"
CURVES_FILE = "curves.json"
CURVES_CHART = "curves.svg"
TENSORBOARD = "tensorboard"
"""Logs of each attempt, which no manifest names: they hold the time of day."""
