"""Vocabularies: the users and the items that training saw, in the order of the towers' rows."""

import pyarrow as pa

from schemas.fields import dataset_schema, documented

USER_VOCABULARY = dataset_schema(
    "user_vocabulary",
    1,
    [
        documented("user_id", pa.string(), "a user that training saw; ascending"),
        documented("code", pa.int32(), "the user's row in the user tower"),
        documented("train_count", pa.int64(), "training positives of the user"),
    ],
)
ITEM_VOCABULARY = dataset_schema(
    "item_vocabulary",
    1,
    [
        documented("item_id", pa.string(), "an item that training saw; ascending"),
        documented("code", pa.int32(), "the item's row in the item tower (not its code in the catalogue)"),
        documented("train_count", pa.int64(), "training positives of the item"),
    ],
)
