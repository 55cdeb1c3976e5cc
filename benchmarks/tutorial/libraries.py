"""Row 9: the same vectors and users through FAISS, hnswlib, TFRS's layer, plain scans, and Shortlist's index, on equal terms.

Each library has one index and a few settings of its search, from quick to thorough. A setting has a recall and a speed; of a
library's settings, those count that no other beats in both, and between them speed is interpolated (its logarithm, along
recall), so that all are read off at the same recall. All are timed in turns, in one process, with the same threads.
"""

import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from benchmarks.timing import interleaved, num_threads, timed
from benchmarks.tutorial.figures import markdown
from pipelines.cli.logs import LOGGER
from schemas.errors import InputError
from transforms.search.ranking_metrics import recall_against
from transforms.search.scann_index import ShardPlan, build, plan_shard

K = 100
REPEATS = 3
_TRAINING_VECTORS_A_LIST = 50
"""FAISS asks for at least 39."""
PACKAGES = {"faiss": "faiss-cpu", "hnswlib": "hnswlib"}
"""By the module that is imported."""

Setting = Mapping[str, float]
Search = Callable[[np.ndarray, int, Setting], np.ndarray]
"""([num_queries, dim] float32, k, setting) -> [num_queries, k] rows, best first."""


@dataclass(frozen=True)
class Library:
    """An index that can be searched.

    Attributes:
      name: what it is.
      settings: of its search, to be tried.
      search: finds rows.
      build_seconds: what it took to build.
    """

    name: str
    settings: Sequence[Setting]
    search: Search
    build_seconds: float


@dataclass(frozen=True)
class Point:
    """What a setting gives."""

    library: str
    setting: Setting
    recall: float
    """Of the first 100, a mean over users."""
    users_per_second: float


@dataclass(frozen=True)
class Comparison:
    """What some libraries give on the same vectors.

    Attributes:
      catalogue: which vectors.
      build_seconds: by library; those that were built elsewhere are not in it.
      points: of all libraries.
    """

    catalogue: str
    build_seconds: Mapping[str, float]
    points: Sequence[Point]

    @property
    def by_library(self) -> dict[str, list[Point]]:
        """The points that count, by recall; Shortlist's first."""
        names = dict.fromkeys(point.library for point in self.points)
        return {name: front_of(point for point in self.points if point.library == name) for name in names}

    def table(self, recall: float) -> str:
        """Returns the users a second at a recall as a Markdown table."""
        lines = [["library", "built in", f"users a second at recall@{K} {recall:g}", "against Shortlist"]]
        speeds = {name: speed_at(points, recall) for name, points in self.by_library.items()}
        ours = next(iter(speeds.values()))
        for name, speed in speeds.items():
            built = f"{self.build_seconds[name]:.1f} s" if name in self.build_seconds else ""
            best = max(point.recall for point in self.by_library[name])
            shown = f"{speed:,.0f}" if speed else f"not reached, {best:.3f} at most"
            lines.append([name, built, shown, f"{speed / ours:.2f}x" if speed and ours else ""])
        return markdown(lines)

    def report(self, recall: float) -> dict[str, Any]:
        """Returns everything as JSON."""
        return asdict(self) | {
            "recall": recall,
            "users_per_second": {name: speed_at(points, recall) for name, points in self.by_library.items()},
        }


def compare(
    vectors: np.ndarray,
    makers: Sequence[Callable[[np.ndarray], Library]],
    others: Sequence[Library],
    users: np.ndarray,
    queries: np.ndarray,
) -> Comparison:
    """Builds and measures libraries on [n, dim] vectors, Shortlist's first.

    Args:
      vectors: to search.
      makers: of the libraries to build.
      others: that are built already, on the same vectors.
      users: [num_users, dim] float32, on whom recall is measured.
      queries: [num_queries, dim] float32, with whom speed is measured.
    """
    truth = build(vectors, ShardPlan("exact", *vectors.shape)).search_exact(users, min(K, len(vectors)))[0]
    built = []
    for make in makers:
        built.append(make(vectors))
        LOGGER.info(f"{built[-1].name}: {len(vectors):,} vectors, built in {built[-1].build_seconds:.1f} s")
    points = measure([*built, *others], users, truth, queries)
    seconds = {library.name: library.build_seconds for library in built}
    return Comparison(f"{len(vectors):,} vectors of {vectors.shape[1]} dimensions", seconds, points)


def tutorial_layers(layers: Mapping[tuple[int, int, int], Any]) -> Library:
    """Takes TFRS's layers, by leaves, leaves searched and candidates reordered, as the settings of one library."""
    keys = ("leaves", "searched", "reordered")

    def search(queries: np.ndarray, k: int, setting: Setting) -> np.ndarray:
        leaves, searched, reordered = (int(setting[key]) for key in keys)
        return layers[leaves, searched, reordered](queries, k=k)[1].numpy().astype(np.int64)

    return Library("TFRS's ScaNN layer", [dict(zip(keys, each, strict=True)) for each in layers], search, 0.0)


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that are installed."""
    installed = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module)]
    return {name: importlib.metadata.version(name) for name in installed}


def check_installed() -> None:
    """Raises InputError if a library is missing."""
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(
            f"row 9 compares with {' and '.join(missing)}, not installed here: "
            "pip install -r requirements-benchmarks.txt, or leave 9 out of --rows"
        )


def shortlist(vectors: np.ndarray) -> Library:
    """Indexes [n, dim] vectors as a shard of Shortlist's."""
    index, seconds = timed(lambda: build(vectors, plan_shard(*vectors.shape)))
    # From a quarter of a percent of the leaves to 8 percent.
    leaves = sorted({math.ceil(index.plan.num_leaves * 2.0**power / 400) for power in range(6)})
    settings = [{"leaves": each, "reorder": factor * K} for each, factor in product(leaves, (1.5, 3.0, 6.0, 12.0))]

    def search(queries: np.ndarray, k: int, setting: Setting) -> np.ndarray:
        return index.search(queries, k, int(setting["leaves"]), int(setting["reorder"]))[0]

    return Library("Shortlist (ScaNN)", settings, search, seconds)


def plain_scan(vectors: np.ndarray) -> Library:
    """Scans [n, dim] vectors as Shortlist does where an index is exact."""
    index, seconds = timed(lambda: build(vectors, ShardPlan("exact", *vectors.shape)))
    return Library("Shortlist, exact", [{}], lambda queries, k, _: index.search_exact(queries, k)[0], seconds)


def faiss_scan(vectors: np.ndarray) -> Library:
    """Scans [n, dim] vectors with FAISS."""
    faiss = _faiss()
    index = faiss.IndexFlatIP(vectors.shape[1])
    _, seconds = timed(lambda: index.add(vectors))
    return Library("FAISS, exact", [{}], lambda queries, k, _: index.search(queries, k)[1], seconds)


def faiss_ivf(vectors: np.ndarray) -> Library:
    """Indexes [n, dim] vectors with FAISS: inverted lists, 4-bit product quantization for fast scan, refined in float32."""
    faiss = _faiss()
    num_vectors, dim = vectors.shape
    num_lists = max(1, min(round(4 * math.sqrt(num_vectors)), num_vectors // _TRAINING_VECTORS_A_LIST))
    index = faiss.index_factory(dim, f"IVF{num_lists},PQ{dim // 2}x4fs,RFlat", faiss.METRIC_INNER_PRODUCT)

    def fill() -> None:
        sample = np.random.default_rng(0).permutation(num_vectors)[: max(num_lists * _TRAINING_VECTORS_A_LIST, 10_000)]
        index.train(vectors[np.sort(sample)])
        index.add(vectors)

    def search(queries: np.ndarray, k: int, setting: Setting) -> np.ndarray:
        lists = faiss.SearchParametersIVF(nprobe=int(setting["nprobe"]))
        settings = faiss.IndexRefineSearchParameters(k_factor=setting["k_factor"], base_index_params=lists)
        return index.search(queries, k, params=settings)[1]

    _, seconds = timed(fill)
    probes = sorted({math.ceil(num_lists * 2.0**power / 800) for power in range(7)})
    settings = [{"nprobe": each, "k_factor": factor} for each, factor in product(probes, (2.0, 4.0, 8.0, 16.0))]
    return Library("FAISS (IVF-PQ fast scan, refined)", settings, search, seconds)


def hnsw(vectors: np.ndarray) -> Library:
    """Indexes [n, dim] vectors with hnswlib, as its documentation suggests."""
    import hnswlib

    index = hnswlib.Index("ip", vectors.shape[1])
    index.init_index(len(vectors), M=16, ef_construction=200, random_seed=0)
    index.set_num_threads(num_threads())

    def search(queries: np.ndarray, k: int, setting: Setting) -> np.ndarray:
        index.set_ef(int(setting["ef"]))
        return index.knn_query(queries, k)[0].astype(np.int64)

    _, seconds = timed(lambda: index.add_items(vectors))
    return Library("hnswlib (M=16)", [{"ef": each} for each in (100, 150, 200, 300, 450, 700, 1_000)], search, seconds)


def _faiss() -> Any:
    import faiss

    faiss.omp_set_num_threads(num_threads())
    return faiss


def measure(libraries: Sequence[Library], users: np.ndarray, truth: np.ndarray, queries: np.ndarray) -> list[Point]:
    """Returns what the settings of every library give, but for those that another beats at once in both.

    Args:
      libraries: to measure.
      users: [num_users, dim] float32, on whom recall is measured.
      truth: [num_users, at least k] int64, what an exact search finds for them.
      queries: [num_queries, dim] float32, with whom speed is measured.
    """
    k = min(K, truth.shape[1])
    kept: list[tuple[Library, Point]] = []
    for library in libraries:
        first = []
        for setting in library.settings:
            rows, seconds = timed(partial(library.search, users, k, setting))
            first.append(Point(library.name, setting, recall_against(rows, truth[:, :k]).mean, len(users) / seconds))
        kept += [(library, point) for point in front_of(first)]
    seconds_of = interleaved(
        {str(index): partial(library.search, queries, k, point.setting) for index, (library, point) in enumerate(kept)}, REPEATS
    )
    return [
        replace(point, users_per_second=len(queries) / seconds)
        for (_, point), seconds in zip(kept, seconds_of.values(), strict=True)
    ]


def front_of(points: Iterable[Point]) -> list[Point]:
    """Returns the points of one library that no other beats in recall and in speed, by recall."""
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (-each.recall, -each.users_per_second)):
        if not front or point.users_per_second > front[-1].users_per_second:
            front.append(point)
    return front[::-1]


def speed_at(points: Iterable[Point], recall: float) -> float | None:
    """Returns the users a second of one library at a recall, interpolated; None where it does not get so far.

    Where every setting finds more, that is the quickest setting's speed.
    """
    front = front_of(points)
    above = [point for point in front if point.recall >= recall]
    below = [point for point in front if point.recall < recall]
    if not above:
        return None
    if not below:
        return above[0].users_per_second
    low, high = below[-1], above[0]
    share = (recall - low.recall) / (high.recall - low.recall)
    return math.exp((1 - share) * math.log(low.users_per_second) + share * math.log(high.users_per_second))
