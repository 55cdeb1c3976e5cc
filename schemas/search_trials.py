"""Search trials: what each way to build and search an index finds, and what it costs."""

import pyarrow as pa

from schemas.fields import dataset_schema, documented

SEARCH_TRIALS = dataset_schema(
    "search_trials",
    1,
    [
        documented("kind", pa.string(), "of each shard's index: exact, hashed or tree"),
        documented("leaves", pa.int64(), "of each shard's tree; 1 without one"),
        documented("quantization_threshold", pa.float64(), "of the hashes; null without any", nullable=True),
        documented("soar", pa.bool_(), "whether a vector lies in two leaves of a tree"),
        documented("leaves_to_search", pa.int64(), "of each shard's tree; null: all", nullable=True),
        documented(
            "reorder_per_neighbor",
            pa.float64(),
            "vectors scored exactly for each neighbor; null if exact",
            nullable=True,
        ),
        documented("recall", pa.float64(), "the share of the exact list that is found, mean over the users of the sample"),
        documented("standard_error", pa.float64(), "of the recall; infinite for fewer than two users"),
        documented("lower_bound", pa.float64(), "what the true recall is above, 95 times in 100"),
        documented("cost", pa.float64(), "of a user, in roughly scored vectors; depends on no machine"),
        documented("cpu_msec", pa.float64(), "of a user, measured: CPU time of one thread, searching alone"),
        documented("users_per_second", pa.float64(), "1000 / cpu_msec: what one core serves"),
        documented("rows_widened", pa.int64(), "users of the sample whose lists were not certain at first"),
        documented("rows_exact", pa.int64(), "users of the sample who were searched exactly in the end"),
        documented("build_cpu_seconds", pa.float64(), "of building all shards that were tried, measured likewise"),
        documented("index_bytes", pa.int64(), "about what the shards that were tried take"),
        documented("is_enough", pa.bool_(), "whether the lower bound reaches the target"),
        documented("is_front", pa.bool_(), "whether nothing that finds as much has served more users a second"),
        documented("is_chosen", pa.bool_(), "the cheapest that is enough"),
    ],
)
