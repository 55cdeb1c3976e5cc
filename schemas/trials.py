"""Trials: one row for each way to train that a sweep has tried, the best first."""

from collections.abc import Mapping

import pyarrow as pa

from schemas.fields import dataset_schema, documented

DONE, FAILED = "done", "failed"

_TYPES: Mapping[type, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}

_RESULTS = [
    documented("trial", pa.int32(), "its number, from 1, in the order of the space or the file"),
    documented("status", pa.string(), f"{DONE} or {FAILED}"),
    documented("reason", pa.string(), "why it failed", nullable=True),
    documented("quality", pa.float64(), "recall_at_100 + ndcg_at_10: what trials are ranked by", nullable=True),
    documented("recall_at_100", pa.float64(), "mean over the users of the validation slice", nullable=True),
    documented("ndcg_at_10", pa.float64(), "likewise", nullable=True),
    documented("epochs", pa.int32(), "after which it was best", nullable=True),
]


def trials_schema(settings: Mapping[str, type]) -> pa.Schema:
    """Returns the schema of a sweep's trials: results, and a column `setting_NAME` for each setting.

    Args:
      settings: each setting's name and type (str, int, float or bool).
    """
    columns = [
        documented(f"setting_{name}", _TYPES[kind], f"the setting that --{name} takes; null for its default", nullable=True)
        for name, kind in settings.items()
    ]
    return dataset_schema("trials", 1, [*_RESULTS, *columns])
