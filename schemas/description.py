"""What a report says of a table beyond its verdict: counts of counts, which stay small at any size, and a few examples."""

import pyarrow as pa

from schemas.fields import dataset_schema, documented

ITEMS_BY_POPULARITY = dataset_schema(
    "items_by_popularity",
    1,
    [
        documented("train_count", pa.int64(), "training positives of an item; rows ascend by it"),
        documented("items", pa.int64(), "items of the catalogue that have so many"),
        documented("listings", pa.int64(), "how often one of these items is in a list"),
    ],
)

ITEMS_BY_LISTINGS = dataset_schema(
    "items_by_listings",
    1,
    [
        documented("listings", pa.int64(), "in how many lists an item is; rows ascend by it"),
        documented("items", pa.int64(), "items of the catalogue that are in so many"),
    ],
)

USERS_BY_HISTORY = dataset_schema(
    "users_by_history",
    1,
    [
        documented("history_length", pa.int64(), "training positives of a user; rows ascend by it"),
        documented("source", pa.string(), "where the lists came from; rows ascend by it next"),
        documented("users", pa.int64(), "users of the table with such a history and source"),
    ],
)

TOP_ITEMS = dataset_schema(
    "top_items",
    1,
    [
        documented("item_id", pa.string(), "an item that is in many lists; most first, then by item_id"),
        documented("title", pa.string(), "what to show a person", nullable=True),
        documented("train_count", pa.int64(), "training positives of the item"),
        documented("listings", pa.int64(), "in how many lists it is"),
    ],
)

RATED = pa.struct([pa.field("item_id", pa.string(), nullable=False), pa.field("title", pa.string())])

LISTED = pa.struct(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("is_held_out", pa.bool_(), nullable=False),
    ]
)

EXAMPLE_USERS = dataset_schema(
    "example_users",
    1,
    [
        documented("user_id", pa.string(), "one of the users with the lowest hashes: the same ones while they are there"),
        documented("source", pa.string(), "where the list came from"),
        documented("history_length", pa.int64(), "training positives of the user"),
        documented("held_out", pa.int64(), "how many positives are held out of the user's history"),
        documented("history", pa.list_(RATED), "the latest training positives, the latest first"),
        documented("recommendations", pa.list_(LISTED), "the first of the list, best first"),
    ],
)
