"""What trials of an index come to: their table, the Pareto front, and the settings to take."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from schemas.blocks import Block, one_block
from schemas.parquet_files import parquet_writer
from schemas.search_trials import SEARCH_TRIALS
from schemas.stage_files import TRIALS, TUNED_FILE
from schemas.storage import WrittenFile, write_file
from transforms.index.calibration import CalibrationSettings, TrialResult, is_enough
from transforms.io.write import part_path
from transforms.search.scann_index import BuildSettings, ShardPlan


def trials_block(
    ask: BuildSettings,
    plans: Sequence[ShardPlan],
    tried: Sequence[TrialResult],
    num_users: int,
    build_seconds: float,
    calibration: CalibrationSettings,
) -> Block:
    """Returns what was tried of one build as rows of SEARCH_TRIALS."""
    is_exact = all(plan.kind == "exact" for plan in plans)
    kind = "exact" if is_exact else str(ask.kind)
    rows = [
        {
            "kind": kind,
            "leaves": max(plan.num_leaves for plan in plans),
            "quantization_threshold": None if is_exact else ask.quantization_threshold,
            "soar": kind == "tree" and ask.soar,
            "leaves_to_search": each.settings.leaves_to_search,
            "reorder_per_neighbor": None if is_exact else each.settings.reorder_per_neighbor,
            "recall": each.recall,
            "standard_error": each.standard_error,
            "lower_bound": each.lower_bound,
            "cost": each.cost,
            "cpu_msec": 1000 * each.seconds / num_users,
            "users_per_second": num_users / each.seconds if each.seconds else math.inf,
            "rows_widened": each.rows_widened,
            "rows_exact": each.rows_exact,
            "build_cpu_seconds": build_seconds,
            "index_bytes": sum(plan.index_bytes for plan in plans),
            "is_enough": is_enough(each, calibration),
            "is_front": False,
            "is_chosen": False,
        }
        for each in tried
    ]
    return pa.RecordBatch.from_pylist(rows, SEARCH_TRIALS)


def front_of(recalls: np.ndarray, speeds: np.ndarray) -> np.ndarray:
    """Returns [n] bool: the Pareto front, on which nothing has another above it in one and not below it in the other.

    Args:
      recalls: [n] float64.
      speeds: [n] float64.
    """
    front = np.zeros(len(recalls), bool)
    best = -math.inf
    # The fastest first; of equally fast ones the one that finds most.
    for at in np.lexsort((-recalls, -speeds)):
        front[at] = recalls[at] > best
        best = max(best, recalls[at])
    return front


def conclude(blocks: Sequence[Block]) -> pa.Table:
    """Returns all trials, the cheapest first, with the front and the choice marked; exact search is always enough."""
    table = pa.Table.from_batches(blocks, SEARCH_TRIALS).sort_by(
        [(name, "ascending") for name in ("cost", *SEARCH_TRIALS.names[:6])]
    )
    front = front_of(table["recall"].to_numpy(), table["users_per_second"].to_numpy())
    chosen = np.zeros(len(table), bool)
    chosen[np.flatnonzero(table["is_enough"].to_numpy(zero_copy_only=False))[0]] = True
    for name, values in (("is_front", front), ("is_chosen", chosen)):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, SEARCH_TRIALS.field(name), pa.array(values))
    return table


def flags_of(row: dict[str, Any], num_shards: int, target_recall: float) -> dict[str, Any]:
    """Returns the flags with which `index` builds and searches as a trial did, and what they rest on.

    Args:
      row: of SEARCH_TRIALS.
      num_shards: of the index.
      target_recall: what had to be found.
    """
    flags: dict[str, Any] = {"num_shards": num_shards, "target_recall": target_recall, "index_kind": row["kind"]}
    if row["kind"] == "tree":
        flags |= {"leaves": row["leaves"], "no_soar": not row["soar"]}
    if row["kind"] != "exact":
        flags["quantization_threshold"] = row["quantization_threshold"]
        flags["leaves_to_search"] = row["leaves_to_search"]
        flags["reorder_per_neighbor"] = row["reorder_per_neighbor"]
    return {name: value for name, value in flags.items() if value is not None}


def config_of(row: dict[str, Any], num_shards: int, calibration: CalibrationSettings) -> str:
    """Returns a YAML file for --config; its comment says what the settings promise, without a clock in it."""
    flags = yaml.safe_dump(flags_of(row, num_shards, calibration.target_recall), sort_keys=False)
    found = f"recall@{calibration.k} {row['recall']:.4f}, with a lower bound of {row['lower_bound']:.4f}"
    return f"# The cheapest of the settings tried that are sure of the target recall: {found}.\n{flags}"


def write_results(
    root: str, blocks: Sequence[Block], num_shards: int, num_vectors: int, calibration: CalibrationSettings
) -> tuple[list[WrittenFile], dict[str, Any]]:
    """Writes the table and the chosen settings; returns the files, and a report."""
    table = conclude(blocks)
    written: list[WrittenFile] = []
    with parquet_writer(root, part_path(TRIALS, 0), SEARCH_TRIALS, written) as writer:
        writer.write_batch(one_block(table.to_batches(), SEARCH_TRIALS))
    chosen = table.filter(table["is_chosen"]).to_pylist()[0]
    written.append(write_file(root, TUNED_FILE, config_of(chosen, num_shards, calibration).encode()))
    return written, {"trials": len(table), "chosen": chosen, "num_vectors": num_vectors}
