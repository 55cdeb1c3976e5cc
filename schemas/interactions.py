"""Interactions: one row for each (user, item) pair that counts as a positive, after validation and deduplication."""

import pyarrow as pa

from schemas.fields import dataset_schema, documented

USER_ID = documented("user_id", pa.string(), "the user, as text: leading zeros are kept")
ITEM_ID = documented("item_id", pa.string(), "the item, as text: leading zeros are kept")
RATING = documented("rating", pa.float32(), "the rating; null where the source has no ratings", nullable=True)
TIMESTAMP = documented("timestamp", pa.int64(), "Unix time in seconds; null where the source has no times", nullable=True)
POSITION = documented(
    "position", pa.int64(), "the order of rows in the source: file ordinal * 2^40 + a number that grows along the file"
)

INTERACTIONS = dataset_schema("interactions", 1, [USER_ID, ITEM_ID, RATING, TIMESTAMP])
"""What `ingest` writes to `interactions/train` and `interactions/holdout`."""

SERVED_USERS = pa.schema([USER_ID])
"""Users to serve whether they have ratings or not."""

EXCLUSIONS = pa.schema([USER_ID, ITEM_ID])
"""Pairs that must not be recommended."""

ITEM_IDS = pa.schema([ITEM_ID])
"""Items that a list names."""

VALID = pa.schema([USER_ID, ITEM_ID, RATING, TIMESTAMP, POSITION])
"""A validated block inside `ingest`: it still knows where each row stood, which decides between repeated pairs."""
