"""One shard's index: plans it, builds it, saves it, loads it and searches it, with ScaNN and without surprises.

ScaNN (Guo et al. 2020; SOAR: Sun et al. 2023) is quick and has sharp edges. What is made sure of here:

- A score is the float32 inner product, the same bits whatever the batch, the kind of index, the shard or the width: every
  kind reorders in float32. ScaNN scores candidates three at a time and rounds a last one or two differently, so widths and
  the number of vectors are kept at multiples of three; it scores a batch of fewer than 32 queries with another kernel, which
  can choose other leaves, so short batches are filled up. One case is left: where the leaves that are opened hold fewer
  vectors than are to be reordered, one or two of a row's scores may differ in their last bit from batch to batch.
- What ScaNN pads with row 0 and NaN is row -1 and score -inf.
- As many neighbors are reordered as are asked for, at least: ScaNN silently returns fewer otherwise.
- A build depends on its vectors, its plan and its seed alone.
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from schemas.errors import InputError
from schemas.flags import Rule, at_least, check_fields, flag, one_of

EXACT_BELOW = 20_000
"""Shards of fewer vectors are searched exactly (ScaNN's own rule)."""
HASHED_BELOW = 100_000
"""Shards of fewer vectors are hashed without a tree (ScaNN's own rule)."""

KINDS = ("exact", "hashed", "tree")
QUANTIZATION_THRESHOLD = 0.2
"""What ScaNN's authors use, for vectors of length 1."""

_CLUSTERS_PER_BLOCK = 16
_DIMENSIONS_PER_BLOCK = 2
_SOAR_LAMBDA = 1.5
_TRAINING_SAMPLE = 100_000
_MAX_RESULTS = 1 << 22

MIN_BATCH, BATCH = 32, 256
"""ScaNN cuts queries into batches of BATCH, and scores those of fewer than MIN_BATCH with another kernel."""
SCORED_TOGETHER = 3
"""Candidates that ScaNN reorders together; one or two that are left over are rounded differently."""
EXACT_SLACK = 16
"""How many more than asked for an exact search reorders at first."""

_SHARD_FILE = "shard.json"
_PICKLE_FILE = "scann_docids.pkl"


@dataclass(frozen=True)
class ShardPlan:
    """How one shard is indexed."""

    kind: str
    """'exact': every vector is scored; 'hashed': all are scored roughly, the best again; 'tree': the same in some leaves."""
    num_vectors: int
    dim: int
    num_leaves: int = 1
    quantization_threshold: float = QUANTIZATION_THRESHOLD
    """Of anisotropic hashes (Guo et al. 2020), which keep more of what lies along a vector than of what lies across it: the
    inner products to get right, from this share of the product of the vector's and the query's lengths on."""
    soar: bool = True
    """Whether a tree puts each vector in two leaves (Sun et al. 2023)."""

    @property
    def index_bytes(self) -> int:
        """About what the index takes on disk and in memory; a first exact search of another kind adds the vectors again."""
        vectors = 4 * self.num_vectors * self.dim
        hashes = self.num_vectors * math.ceil(self.dim / _DIMENSIONS_PER_BLOCK)
        if self.kind == "exact":
            return vectors
        if self.kind == "hashed":
            return vectors + hashes
        # Centres are stored in float64.
        return vectors + self.leaves_a_vector * (hashes + 4 * self.num_vectors) + 8 * self.num_leaves * self.dim

    @property
    def leaves_a_vector(self) -> int:
        """How many leaves of a tree each vector lies in."""
        return 2 if self.soar else 1


@dataclass(frozen=True)
class BuildSettings:
    """How shards are to be indexed, where not as their size says."""

    kind: str | None = flag(
        None,
        name="index_kind",
        called="the kind of index",
        rule=one_of(*KINDS),
        help="the index of each shard: exact, hashed or tree (default: by its size)",
    )
    num_leaves: int | None = flag(
        None,
        name="leaves",
        called="the number of leaves",
        rule=at_least(1, "raise it or leave it out"),
        help="number of leaves of each shard's tree (default: by its size)",
    )
    quantization_threshold: float = flag(
        QUANTIZATION_THRESHOLD,
        rule=Rule("from 0 to below 1", lambda value: 0 <= value < 1),
        help="threshold of ScaNN's anisotropic hashes",
    )
    soar: bool = flag(True, name="no_soar", unset=False, help="put each vector in one leaf of a tree, not in two")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_leaves is not None and self.kind not in (None, "tree"):
            raise InputError(f"an index of kind {self.kind} has no leaves, got {self.num_leaves}: leave --leaves out")

    def applied_to(self, plan: ShardPlan) -> ShardPlan:
        """Returns the plan as it is asked for; a shard too small for hashes stays exact."""
        kind = self.kind or ("tree" if self.num_leaves else plan.kind)
        if kind == "exact" or plan.num_vectors < _CLUSTERS_PER_BLOCK:
            return ShardPlan("exact", plan.num_vectors, plan.dim)
        leaves = 1
        if kind == "tree":
            by_size = plan.num_leaves if plan.kind == "tree" else leaves_by_size(plan.num_vectors)
            leaves = min(self.num_leaves or by_size, plan.num_vectors)
        return replace(
            plan,
            kind=kind,
            num_leaves=leaves,
            quantization_threshold=self.quantization_threshold,
            soar=self.soar or kind != "tree",
        )


def leaves_by_size(num_vectors: int) -> int:
    """Returns how many leaves a tree has that nobody has tuned, with SOAR: sqrt(n) times n^(1/4) / 12, from 1.5 up to 3.

    That was quickest at equal recall: 1.5 for 100 thousand vectors, 3 for 1.7 million.
    """
    return max(1, round(math.sqrt(num_vectors) * min(max(num_vectors**0.25 / 12, 1.5), 3)))


def plan_shard(num_vectors: int, dim: int, num_leaves: int | None = None) -> ShardPlan:
    """Chooses the kind of index, and how many leaves, for a shard.

    Args:
      num_vectors: how many vectors the shard has.
      dim: their dimension.
      num_leaves: plans a tree of so many leaves, whatever the size; without it the size decides, and a tree has about
        3 sqrt(n) leaves.

    Raises:
      InputError: `num_leaves` is below 1.
    """
    if num_leaves is not None and num_leaves < 1:
        raise InputError(f"the number of leaves must be at least 1, got {num_leaves}: raise --num_leaves or leave it out")
    # Training a hash needs a vector for each of its clusters.
    if num_vectors < _CLUSTERS_PER_BLOCK or (num_leaves is None and num_vectors < EXACT_BELOW):
        return ShardPlan("exact", num_vectors, dim)
    if num_leaves is None and num_vectors < HASHED_BELOW:
        return ShardPlan("hashed", num_vectors, dim)
    return ShardPlan("tree", num_vectors, dim, min(num_leaves or leaves_by_size(num_vectors), num_vectors))


def build(vectors: np.ndarray, plan: ShardPlan, seed: int = 0) -> "ShardIndex":
    """Builds the index that `plan` describes: the same one for the same arguments.

    Args:
      vectors: [num_vectors, dim] float32, all finite. Equal scores go to the lower row.
      plan: from `plan_shard`, for vectors of this shape.
      seed: starts the clustering of a tree.

    Raises:
      InputError: a vector is not finite.
    """
    if vectors.shape != (plan.num_vectors, plan.dim):
        raise ValueError(f"the plan is for vectors of shape {(plan.num_vectors, plan.dim)}, got {vectors.shape}")
    vectors = np.ascontiguousarray(vectors, np.float32)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise InputError(f"vectors must be finite, {len(bad)} are not, the first in row {bad[0]}: train the item tower again")
    max_norm = float(np.linalg.norm(vectors.astype(np.float64), axis=1).max(initial=0))
    copies = -len(vectors) % SCORED_TOGETHER
    stored = np.concatenate([vectors, np.repeat(vectors[-1:], copies, axis=0)]) if copies and len(vectors) else vectors
    searcher = _create_searcher(stored, plan, seed) if len(stored) else None
    return ShardIndex(plan, max_norm, stored, searcher)


def _create_searcher(stored: np.ndarray, plan: ShardPlan, seed: int) -> Any:
    """Returns ScaNN's searcher for [n, dim] vectors."""
    pybind = _pybind()
    builder = pybind.builder(stored, SCORED_TOGETHER, "dot_product").reorder(SCORED_TOGETHER)
    if plan.kind == "exact":
        return pybind.create_searcher(stored, builder.score_brute_force().create_config())
    # ScaNN compares its threshold with each vector's length, not with 1: 0.2 would do nothing to vectors of length 4.
    length = math.sqrt(float(np.square(stored, dtype=np.float64).sum(axis=1).mean()))
    builder = builder.score_ah(
        _DIMENSIONS_PER_BLOCK,
        anisotropic_quantization_threshold=plan.quantization_threshold * length,
        training_sample_size=_TRAINING_SAMPLE,
    )
    if plan.kind == "tree":
        builder = builder.tree(
            plan.num_leaves,
            plan.num_leaves,
            training_sample_size=_TRAINING_SAMPLE,
            random_init=False,
            soar_lambda=_SOAR_LAMBDA if plan.soar else None,
        )
    # The builder has no seed, but the configuration that it writes has. One thread, for two sum in an order of their own.
    config = builder.create_config().replace("partitioning {", f"partitioning {{ clustering_seed: {seed % 2**31}", 1)
    return pybind.create_searcher(stored, config, training_threads=1)


def load(folder: str | Path) -> "ShardIndex":
    """Loads an index that `ShardIndex.save` wrote, wherever its folder is now; once loaded, the folder may go.

    Raises:
      ValueError: the folder holds a pickle, which no index of ours does.
    """
    folder = Path(folder)
    if (folder / _PICKLE_FILE).exists():
        raise ValueError(f"{folder / _PICKLE_FILE} is a pickle, which could run any code, and no part of an index: delete it")
    shard = json.loads((folder / _SHARD_FILE).read_text())
    plan = ShardPlan(**shard["plan"])
    if not plan.num_vectors:
        return ShardIndex(plan, 0.0, np.zeros((0, plan.dim), np.float32), None)
    # Mapped, not read: the vectors are needed only where another kind than 'exact' is searched exactly.
    stored = np.load(folder / "dataset.npy", mmap_mode="r", allow_pickle=False)
    return ShardIndex(plan, shard["max_norm"], stored, _pybind().load_searcher(str(folder), assets_backcompat_shim=False))


class ShardIndex:
    """A searchable shard. It lives in one process: other processes load it from its folder."""

    def __init__(self, plan: ShardPlan, max_norm: float, stored: np.ndarray, searcher: Any) -> None:
        """Is called by `build` and `load`.

        Args:
          plan: what the index is.
          max_norm: the length of the longest vector.
          stored: [num_vectors and up to two copies of the last, dim] float32.
          searcher: ScaNN's, over `stored`; None where the shard is empty.
        """
        self.plan = plan
        self.max_norm = max_norm
        self._stored = stored
        self._searcher = searcher

    def __reduce__(self) -> Any:
        raise TypeError("an index cannot be pickled: save it, pass its folder, and load it in setup()")

    @property
    def num_vectors(self) -> int:
        return self.plan.num_vectors

    @property
    def is_exact(self) -> bool:
        """Tells whether every search of this index is exact."""
        return self.plan.kind == "exact"

    @property
    def rounding(self) -> float:
        """What rounding can move the score of a query of length 1 by, at most."""
        return 4 * self.plan.dim * 2.0**-24 * self.max_norm

    def save(self, folder: str | Path) -> None:
        """Writes the index to a local folder, making it; nothing in there names a path, and nothing is a pickle."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self._searcher is not None:
            self._searcher.serialize(str(folder), relative_path=True)
        (folder / _SHARD_FILE).write_text(json.dumps({"plan": asdict(self.plan), "max_norm": self.max_norm}) + "\n")

    def subset(self, rows: np.ndarray) -> "ShardIndex":
        """Returns an exact index of the vectors in `rows` ([m] int64, ascending), built now; row i is rows[i] here."""
        return build(self._stored[rows], ShardPlan("exact", len(rows), self.plan.dim))

    def search(
        self, queries: np.ndarray, k: int, leaves_to_search: int | None = None, reorder: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds about the k best rows for each query; exactly them where the index is exact.

        All three settings may differ from call to call. With every leaf open and every vector reordered, any kind is exact.

        Args:
          queries: [num_queries, dim] float32.
          k: how many rows; more than there are is no error.
          leaves_to_search: how many leaves of a tree are opened; all without it.
          reorder: how many of the roughly best are scored exactly; raised to k where it is less.

        Returns:
          rows: [num_queries, k] int64, best first (score descending, then row ascending), -1 where there is none.
          scores: [num_queries, k] float32, the inner products, -inf where there is none.
        """
        if self.is_exact:
            return self.search_exact(queries, k)
        queries = self._checked(queries)
        found = self._found(self._searcher, queries, k, reorder, leaves_to_search)
        return _widened(*found, k)

    def search_exact(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Finds the k best rows for each query: what `search` returns, with nothing missed.

        ScaNN's scan rounds otherwise than its reordering, so a few more rows than asked for are reordered. The answer stands
        if the last of them is worse than the k-th by more than rounding could explain; if not, more rows are.
        """
        queries = self._checked(queries)
        columns = min(k, self.num_vectors)
        rows = np.full((len(queries), columns), -1, np.int64)
        scores = np.full((len(queries), columns), -np.inf, np.float32)
        tolerance = self.rounding * np.linalg.norm(queries.astype(np.float64), axis=1)
        width = columns + EXACT_SLACK
        pending = np.arange(len(queries) if columns else 0)
        while len(pending):
            unsettled = []
            for chunk in np.array_split(pending, math.ceil(len(pending) * min(width, self.num_vectors) / _MAX_RESULTS)):
                found, found_scores = self._found(self._exact_searcher, queries[chunk], width, width)
                rows[chunk], scores[chunk] = found[:, :columns], found_scores[:, :columns]
                if width < self.num_vectors:
                    gap = found_scores[:, columns - 1].astype(np.float64) - found_scores[:, -1]
                    unsettled.append(chunk[~(gap > tolerance[chunk])])
            pending = np.concatenate(unsettled) if unsettled else pending[:0]
            width *= 4
        return _widened(rows, scores, k)

    @cached_property
    def _exact_searcher(self) -> Any:
        """A plain scan over the vectors: many times quicker than reordering everything, for one more copy of the vectors."""
        if self.is_exact or self._searcher is None:
            return self._searcher
        return _create_searcher(np.array(self._stored), ShardPlan("exact", *self._stored.shape), 0)

    def _checked(self, queries: np.ndarray) -> np.ndarray:
        if queries.ndim != 2 or queries.shape[1] != self.plan.dim:
            raise InputError(
                f"queries must have the index's {self.plan.dim} dimensions, got shape {queries.shape}: "
                "search with the towers that embedded the items"
            )
        return np.ascontiguousarray(queries, np.float32)

    def _found(
        self, searcher: Any, queries: np.ndarray, k: int, reorder: int, leaves: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Asks ScaNN, and makes sure of what the module promises.

        Returns:
          rows: [num_queries, min(k, num_vectors)] int64.
          scores: the same shape, float32.
        """
        num_queries, columns = len(queries), min(k, self.num_vectors)
        if not num_queries or not columns:
            return np.full((num_queries, columns), -1, np.int64), np.full((num_queries, columns), -np.inf, np.float32)
        copies = len(self._stored) - self.num_vectors
        wanted = columns + copies
        reorder = min(len(self._stored), SCORED_TOGETHER * math.ceil(max(reorder, wanted) / SCORED_TOGETHER))
        # ScaNN cuts the queries into batches; the last one, filled up with zeros, must not be short.
        short = -num_queries % BATCH - (BATCH - MIN_BATCH)
        # A plain scan has no leaves to choose, and what its rounding could change, search_exact guards against.
        if short > 0 and leaves is not None:
            queries = np.concatenate([queries, np.zeros((short, queries.shape[1]), np.float32)])
        search = searcher.search_batched_parallel if len(queries) > BATCH else searcher.search_batched
        found, found_scores = search(queries, wanted, reorder, leaves)
        rows, scores = found[:num_queries].astype(np.int64), found_scores[:num_queries]
        absent = np.isnan(scores)
        if copies:
            absent |= rows >= self.num_vectors
        if absent.any():
            rows[absent] = -1
            scores = np.where(absent, np.float32(-np.inf), scores)
            # A copy of the last vector may stand between rows that count.
            mixed = np.flatnonzero((absent[:, :-1] & ~absent[:, 1:]).any(axis=1))
            order = np.argsort(absent[mixed], axis=1, kind="stable")
            rows[mixed] = np.take_along_axis(rows[mixed], order, axis=1)
            scores[mixed] = np.take_along_axis(scores[mixed], order, axis=1)
        return rows[:, :columns], scores[:, :columns]


def _widened(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns both with k columns, the added ones empty."""
    missing = ((0, 0), (0, k - rows.shape[1]))
    if not missing[1][1]:
        return rows, scores
    return np.pad(rows, missing, constant_values=-1), np.pad(scores, missing, constant_values=-np.inf)


def _pybind() -> Any:
    """Imports ScaNN when it is first needed: it imports TensorFlow where there is one, which takes seconds."""
    from scann.scann_ops.py import scann_ops_pybind

    return scann_ops_pybind
