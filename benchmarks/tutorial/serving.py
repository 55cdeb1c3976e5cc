"""Brute force and ScaNN as layers of TFRS, and Shortlist's index: the same vectors, the same users, one process.

Rows 2 to 5 and 7 of the table. Figures are yielded as they are measured.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import tensorflow as tf
from tensorflow_recommenders.layers.factorized_top_k import BruteForce, ScaNN, Streaming, TopK

from benchmarks.timing import Work, seconds_of, timed
from benchmarks.tutorial import published
from benchmarks.tutorial.accuracy import accuracy_of
from benchmarks.tutorial.catalogue import enlarged
from benchmarks.tutorial.figures import Figure
from benchmarks.tutorial.model import TutorialModel, batches
from benchmarks.tutorial.ratings import Ratings
from transforms.index.calibration import TARGET_RECALL, CalibrationSettings, UserSample, calibrate
from transforms.search.ranking_metrics import recall_against
from transforms.search.scann_index import ShardIndex, ShardPlan, build, plan_shard
from transforms.search.search import SearchSettings, Shard, top_k_of_block
from transforms.search.top_k import Lists

Accuracy = dict[int, float]

FIRST = next(iter(published.LAYERS))
"""The settings of ScaNN that the tutorial starts with."""
SHOWN = 3
"""How many items the tutorial asks for when it shows an answer."""
RECALL_AT = 10
ACCURACY_AT = max(published.ACCURACY)
BATCH = 100
"""Users that brute force is asked for at once: their scores of the whole catalogue must fit memory."""
CALLS = 101
SLOW_CALLS = 11


@dataclass(frozen=True)
class Bench:
    """What is measured on.

    Attributes:
      ratings: split.
      model: the tutorial's, trained.
      users: [num_users, dim] float32: the model's user vectors, by code.
      items: [num_items, dim] float32: its item vectors.
      copies: of each item in the large catalogue.
    """

    ratings: Ratings
    model: TutorialModel
    users: np.ndarray
    items: np.ndarray
    copies: int

    @cached_property
    def catalogue(self) -> np.ndarray:
        """[num_items * (copies + 1), dim] float32: the large catalogue."""
        return enlarged(self.items, self.copies)

    @property
    def user(self) -> int:
        """The code of the user whom the tutorial asks for, or of the first one."""
        return int((self.ratings.user_ids == published.USER).argmax())

    @property
    def query(self) -> np.ndarray:
        """[1, dim] float32: that user's vector."""
        return self.users[[self.user]]

    @property
    def queries(self) -> np.ndarray:
        """[num_test, dim] float32: the vector of each test row's user."""
        return self.users[self.ratings.user[self.ratings.test]]

    def titles(self, rows: np.ndarray) -> str:
        """Returns what rows of the catalogue are, for people."""
        names = self.ratings.titles
        return "; ".join(f"{'' if row < len(names) else 'a copy of '}{names[row % len(names)]}" for row in rows)

    # Layers and indexes are slow to build, and several rows need them.

    @cached_property
    def brute_force(self) -> TopK:
        """TFRS's brute force over the large catalogue, for vectors of users."""
        return brute_force(self.catalogue)

    @cached_property
    def exact(self) -> ShardIndex:
        """Shortlist's plain scan over the large catalogue."""
        return exact_index(self.catalogue)

    @cached_property
    def index(self) -> Shard:
        """Shortlist's index of the large catalogue, planned by its size."""
        plan = plan_shard(*self.catalogue.shape)
        return Shard(build(self.catalogue, plan), np.arange(len(self.catalogue)))

    @cached_property
    def truth(self) -> np.ndarray:
        """[num_users, 100] int64: the rows that are the best for each user."""
        return self.exact.search_exact(self.users, min(ACCURACY_AT, len(self.catalogue)))[0]

    @cached_property
    def layers(self) -> dict[tuple[int, int, int], TopK]:
        """TFRS's ScaNN over the large catalogue, for vectors of users, with each of the tutorial's settings."""
        return {each: scann(self.catalogue, *each) for each in published.LAYERS}

    @cached_property
    def for_ten(self) -> SearchSettings:
        """How Shortlist finds as much of the first 10 as the best of the tutorial's settings."""
        return self._calibrated(RECALL_AT, max(published.LAYERS.values()))

    @cached_property
    def for_hundred(self) -> SearchSettings:
        """How Shortlist finds what it finds by default of the first 100."""
        return self._calibrated(ACCURACY_AT, TARGET_RECALL)

    def _calibrated(self, k: int, target_recall: float) -> SearchSettings:
        sample = UserSample(self.users, Lists.none(len(self.users)))
        return calibrate([self.index], sample, CalibrationSettings(k=k, target_recall=target_recall)).search

    def lists(self, queries: np.ndarray, k: int, settings: SearchSettings) -> np.ndarray:
        """Returns [num_queries, k] int64: the rows that Shortlist lists for vectors of users."""
        return top_k_of_block([self.index], queries, Lists.none(len(queries)), k, settings)[0].codes


def brute_force(vectors: np.ndarray) -> TopK:
    """Returns TFRS's brute force over [n, dim] vectors; it answers vectors of users with rows."""
    return BruteForce().index(tf.constant(vectors))


def scann(vectors: np.ndarray, leaves: int, searched: int, reordered: int) -> TopK:
    """Returns TFRS's ScaNN over [n, dim] vectors; it answers vectors of users with rows."""
    layer = ScaNN(
        num_leaves=min(leaves, len(vectors)),
        num_leaves_to_search=searched,
        num_reordering_candidates=reordered,
    )
    return layer.index(tf.constant(vectors))


def exact_index(vectors: np.ndarray) -> ShardIndex:
    """Returns Shortlist's plain scan over [n, dim] vectors."""
    return build(vectors, ShardPlan("exact", *vectors.shape))


def call(layer: TopK, queries: np.ndarray, k: int) -> Callable[[], np.ndarray]:
    """Returns what asks a layer for the first k rows of [num_queries, dim] queries."""
    tensor = tf.constant(queries)
    return lambda: layer(tensor, k=k)[1].numpy()


def milliseconds_of(work: Work, repeats: int = CALLS) -> float:
    """Returns what one call takes, once the first is over: it traces or allocates."""
    work()
    return 1e3 * seconds_of(work, repeats)


def measure_small(bench: Bench) -> Iterator[Figure]:
    """Row 2: brute force over the catalogue as it is."""
    layer, index = brute_force(bench.items), exact_index(bench.items)
    served = BruteForce(bench.model.user_model).index(tf.constant(bench.items))
    user_id = bench.ratings.user_ids[bench.user]
    yield Figure(
        2,
        f"brute force, the first {SHOWN} for user {user_id}",
        tutorial=bench.titles(served(tf.constant([user_id]), k=SHOWN)[1].numpy()[0]),
        shortlist=bench.titles(index.search_exact(bench.query, SHOWN)[0][0]),
    )
    yield Figure(
        2,
        f"brute force, one user, {len(bench.items):,} items",
        "ms",
        tutorial=milliseconds_of(call(layer, bench.query, SHOWN)),
        shortlist=milliseconds_of(lambda: index.search_exact(bench.query, SHOWN)),
    )


def measure_brute_force(bench: Bench) -> Iterator[Figure]:
    """Row 3: brute force over the large catalogue."""
    for what, queries, repeats in (
        ("one user", bench.query, SLOW_CALLS),
        (f"{BATCH} users at once, each", bench.queries[:BATCH], 3),
    ):
        yield Figure(
            3,
            f"brute force, {what}, {len(bench.catalogue):,} items",
            "ms",
            tutorial=milliseconds_of(call(bench.brute_force, queries, SHOWN), repeats) / len(queries),
            shortlist=milliseconds_of(partial(bench.exact.search_exact, queries, SHOWN), repeats) / len(queries),
        )


def measure_scann(bench: Bench) -> Iterator[Figure]:
    """Row 4: ScaNN over the large catalogue, against brute force."""
    layer = bench.layers[FIRST]
    rows = call(layer, bench.users, SHOWN)(), bench.lists(bench.users, RECALL_AT, bench.for_ten)[:, :SHOWN]
    user_id = bench.ratings.user_ids[bench.user]
    answers = (bench.titles(each[bench.user]) for each in rows)
    yield Figure(4, f"ScaNN, the first {SHOWN} for user {user_id}", "", None, *answers)
    recalls = (recall_against(each, bench.truth[:, :SHOWN]).mean for each in rows)
    yield Figure(4, f"ScaNN, share of the true first {SHOWN} found, all users", "", None, *recalls)
    by_brute_force = milliseconds_of(call(bench.brute_force, bench.query, SHOWN), SLOW_CALLS)
    times = (
        milliseconds_of(call(layer, bench.query, SHOWN)),
        milliseconds_of(lambda: bench.lists(bench.query, RECALL_AT, bench.for_ten)),
    )
    yield Figure(4, "ScaNN, one user", "ms", None, *times)
    ratios = (by_brute_force / time for time in times)
    yield Figure(4, "one user: TFRS's brute force takes so many times as long", "x", published.SPEEDUP_OF_ONE_QUERY, *ratios)


def measure_evaluation(bench: Bench) -> Iterator[Figure]:
    """Row 5: the accuracy of the test rows on the large catalogue, by brute force and with ScaNN."""
    ratings = bench.ratings
    item = ratings.item[ratings.test]
    tutorial = {"brute force": evaluate(bench, streaming(bench)), "ScaNN": evaluate(bench, bench.layers[FIRST])}

    def by_brute_force() -> Accuracy:
        return accuracy_of(bench.exact.search_exact(bench.queries, ACCURACY_AT)[0], item)

    def with_index() -> Accuracy:
        return accuracy_of(bench.lists(bench.queries, ACCURACY_AT, bench.for_hundred), item)

    with_index()  # Calibrates.
    shortlist = {"brute force": timed(by_brute_force), "ScaNN": timed(with_index)}
    claimed = {"brute force": published.BRUTE_FORCE_SECONDS, "ScaNN": published.SCANN_SECONDS}
    for name, seconds in claimed.items():
        yield Figure(5, f"evaluating {len(item):,} test rows, {name}", "s", seconds, tutorial[name][1], shortlist[name][1])
    ratios = (tutorial["brute force"][1] / each["ScaNN"][1] for each in (tutorial, shortlist))
    what = "evaluating: TFRS's brute force takes so many times as long"
    yield Figure(5, what, "x", published.BRUTE_FORCE_SECONDS / published.SCANN_SECONDS, *ratios)
    for name in claimed:
        accuracies = (each[name][0][ACCURACY_AT] for each in (tutorial, shortlist))
        yield Figure(5, f"top-{ACCURACY_AT} accuracy among {len(bench.catalogue):,} items, {name}", "", None, *accuracies)


def evaluate(bench: Bench, layer: TopK) -> tuple[Accuracy, float]:
    """Evaluates the test rows as the tutorial does; returns accuracies, and the seconds without tracing."""
    ratings = bench.ratings
    bench.model.judge_with(layer)
    bench.model.accuracy(batches(ratings, slice(ratings.num_train, ratings.num_train + 8), 8))
    test = batches(ratings, ratings.test, published.EVALUATION_BATCH_SIZE)
    return timed(lambda: bench.model.accuracy(test))


def streaming(bench: Bench) -> TopK:
    """Returns the brute force that TFRS makes of a dataset of candidates, which the tutorial evaluates with.

    Its batches are the tutorial's: one copy of the catalogue each.
    """
    blocks = bench.catalogue.reshape(-1, *bench.items.shape)
    rows = np.arange(len(bench.catalogue), dtype=np.int32).reshape(blocks.shape[:2])
    return Streaming(k=ACCURACY_AT).index_from_dataset(tf.data.Dataset.from_tensor_slices((rows, blocks)))


def measure_settings(bench: Bench) -> Iterator[Figure]:
    """Row 7: the recall and the latency of the tutorial's settings, and of Shortlist's own."""
    truth = bench.truth[:, :RECALL_AT]
    for setting, claimed in published.LAYERS.items():
        layer, what = bench.layers[setting], "{} leaves, {} searched, {} reordered".format(*setting)
        recall = recall_against(call(layer, bench.users, RECALL_AT)(), truth).mean
        yield Figure(7, f"recall@{RECALL_AT}, {what}", "", claimed, recall)
        yield Figure(7, f"one user, {what}", "ms", None, milliseconds_of(call(layer, bench.query, RECALL_AT)))
    found = bench.for_ten
    what = describe(bench.index.index.plan, found)
    recall = recall_against(bench.lists(bench.users, RECALL_AT, found), truth).mean
    yield Figure(7, f"recall@{RECALL_AT}, {what}", "", None, None, recall)
    time = milliseconds_of(lambda: bench.lists(bench.query, RECALL_AT, found))
    yield Figure(7, f"one user, {what}", "ms", None, None, time)


def describe(plan: ShardPlan, search: SearchSettings) -> str:
    """Returns what Shortlist's index is and how it is searched, as the tutorial's settings are written."""
    if plan.kind == "exact" or search.exact:
        return "every vector scored"
    leaves = f"{plan.num_leaves} leaves, {search.leaves_to_search or 'all'} searched" if plan.kind == "tree" else "no leaves"
    return f"{leaves}, {round(search.reorder_per_neighbor * RECALL_AT)} reordered"
