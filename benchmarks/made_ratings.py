"""Makes ratings for benchmarks that need many, whatever they say."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def make_ratings(path: Path, num_users: int, num_items: int, ratings_a_user: int) -> Path:
    """Writes ratings whose items follow Zipf's law."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(num_users), ratings_a_user)
    chances = 1 / np.arange(1, num_items + 1)
    items = rng.choice(num_items, len(users), p=chances / chances.sum())
    pq.write_table(pa.table({"user_id": users, "item_id": items}), path)
    return path
