"""Rejected rows: every row that was read and could not be used, with the reason and its values."""

import pyarrow as pa

from schemas.fields import dataset_schema, documented

REJECTED = dataset_schema(
    "rejected",
    1,
    [
        documented(
            "dataset", pa.string(), "'ratings', 'items', 'served users', 'exclusions', 'blocked items' or 'allowed items'"
        ),
        documented("reason", pa.string(), "the rule that the row breaks, such as 'user_id is missing'"),
        documented("source", pa.string(), "the file or dataset that the row came from"),
        documented("position", pa.int64(), "where in the source: grows along a file; low 40 bits: about the byte or row"),
        documented("user_id", pa.string(), "as found", nullable=True),
        documented("item_id", pa.string(), "as found", nullable=True),
        documented("rating", pa.string(), "as found", nullable=True),
        documented("timestamp", pa.string(), "as found", nullable=True),
        documented("text", pa.string(), "the whole line, where it could not be split into columns", nullable=True),
    ],
)
