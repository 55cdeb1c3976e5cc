"""Tunes the index: builds it in many ways, searches each for a sample of users in many ways, and says which are worth having.

    embeddings ──> shards' vectors ──> exact lists: the truth, once
                          └──> one build a trial (leaves, threshold, SOAR) ──> settings of the search, few leaves to many
                                                                                     └──> recall, cost, CPU time

A trial is one element: it reads the stored embeddings itself, so only the truth and the sample travel, and trials run side by
side. What calibration does to one index (`transforms.index.calibrate`) happens here to each: the same sample, requests,
certificate and lower bound, so a setting that is enough here is enough there.

Wall clocks lie where trials run side by side. So what is measured is the CPU time of the one thread that searches, in batches
that ScaNN does not spread over others. The choice is made by `cost`, which depends on no machine; see `calibrate`.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow.compute as pc
from apache_beam.pvalue import AsSingleton
from apache_beam.utils.shared import Shared

from schemas.blocks import FEWER_ITEMS, Block, one_block
from schemas.errors import InputError
from schemas.flags import check_fields, flag, one_of
from schemas.stored import StoredFolder
from transforms.index.build import vectors_of
from transforms.index.calibration import (
    REORDER_FACTORS,
    CalibrationSettings,
    ExactLists,
    SearchTrial,
    ShardAnswers,
    TrialResult,
    Truth,
    UserSample,
    judge_trial,
    settle_trial,
    start_trial,
    truth_of,
)
from transforms.index.tuning_report import trials_block
from transforms.io.partition import key_by_shard
from transforms.search.scann_index import HASHED_BELOW, QUANTIZATION_THRESHOLD, BuildSettings, build, plan_shard
from transforms.search.search import MAX_ROUNDS, Answer, Request, SearchSettings, Shard, search_block

THRESHOLDS = (QUANTIZATION_THRESHOLD, 2 * QUANTIZATION_THRESHOLD)
SOAR = ("both", "yes", "no")

_LEAVES_PER_ROOT = (1.0, 2.0, 3.0, 5.0)
_HASHED_BELOW = 5 * HASHED_BELOW
_OCTAVES, _STEPS_AN_OCTAVE = 7, 2
_WORTHWHILE = 5e-4
_EVERYTHING = 0.9995
_ONE_THREAD = 256  # Rows; ScaNN's wrapper here spreads more of them over threads.
_REPEATS = 3
_REPEATED_BELOW_SEC = 0.2

EXACT = BuildSettings("exact")


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


@dataclass(frozen=True)
class Sweep:
    """What is tried, where not what the size of a shard suggests.

    Attributes:
      leaves: numbers of leaves of each shard's tree; by default sqrt(n) times 1, 2, 3 and 5, and no tree where that may pay.
      thresholds: of the hashes.
      soar: 'both', 'yes' or 'no'.
      leaves_to_search: of each shard's tree; by default from about 1 % of the leaves to all, twice as many in two steps.
      reorder_factors: what `SearchSettings.reorder_per_neighbor` may become.
      past_exact: whether to try what costs as much as exact search, too.
    """

    leaves: tuple[int, ...] = flag(
        (), name="tune_leaves", unset="", help="numbers of leaves to try (default: sqrt(n) times 1, 2, 3, 5)"
    )
    thresholds: tuple[float, ...] = flag(
        THRESHOLDS, name="tune_thresholds", unset=_listed(THRESHOLDS), help="quantization thresholds to try"
    )
    soar: str = flag("both", name="tune_soar", rule=one_of(*SOAR), help="whether to try SOAR: both, yes or no")
    leaves_to_search: tuple[int, ...] = flag(
        (), name="tune_leaves_to_search", unset="", help="numbers of leaves to search to try (default: from 1 %% to all)"
    )
    reorder_factors: tuple[float, ...] = flag(
        REORDER_FACTORS,
        name="tune_reorder",
        unset=_listed(REORDER_FACTORS),
        help="numbers of vectors scored exactly for each neighbor, to try",
    )
    past_exact: bool = flag(False, name="tune_small", help="tune even if all shards are so small that exact search is used")

    def __post_init__(self) -> None:
        check_fields(self)
        for name, values in (("--tune_thresholds", self.thresholds), ("--tune_reorder", self.reorder_factors)):
            if not values:
                raise InputError(f"there is nothing to try without any value of {name}: give one or leave it out")
        # Each value is checked by the settings that it becomes part of.
        self.builds(100)
        self.searches(100)

    def builds(self, num_vectors: int) -> list[BuildSettings]:
        """Returns the ways to build a shard of so many vectors, in a fixed order, without the exact one."""
        root = math.sqrt(num_vectors)
        leaves = self.leaves or tuple(dict.fromkeys(max(1, round(factor * root)) for factor in _LEAVES_PER_ROOT))
        with_soar = {"both": (True, False), "yes": (True,), "no": (False,)}[self.soar]
        found = []
        if not self.leaves and num_vectors < _HASHED_BELOW:
            found += [BuildSettings("hashed", None, threshold) for threshold in self.thresholds]
        return found + [
            BuildSettings("tree", each, threshold, soar)
            for each in leaves
            for soar in with_soar
            for threshold in self.thresholds
        ]

    def searches(self, num_leaves: int) -> list[list[SearchSettings]]:
        """Returns the ways to search a tree of so many leaves (1: none), a list for each number of leaves; few come first."""
        if num_leaves == 1:
            numbers: Sequence[int | None] = [None]
        elif self.leaves_to_search:
            numbers = sorted({min(each, num_leaves) for each in self.leaves_to_search})
        else:
            steps = range(_OCTAVES * _STEPS_AN_OCTAVE + 1)
            numbers = sorted({max(1, round(num_leaves / 2 ** (step / _STEPS_AN_OCTAVE))) for step in steps})
        return [[SearchSettings(each, factor) for factor in sorted(set(self.reorder_factors))] for each in numbers]


@dataclass(frozen=True)
class ShardVectors:
    """The vectors of one shard."""

    codes: np.ndarray
    """[num_vectors] int64, ascending: their items."""
    vectors: np.ndarray
    """[num_vectors, dim] float32."""

    def build(self, ask: BuildSettings, seed: int) -> Shard:
        """Builds the shard's index as asked for."""
        return Shard(build(self.vectors, ask.applied_to(plan_shard(*self.vectors.shape)), seed), self.codes)


def read_shards(embeddings: StoredFolder, items: StoredFolder, num_shards: int, num_tried: int) -> list[ShardVectors]:
    """Reads the first `num_tried` of `num_shards` shards, where they have any vectors: from the stored embeddings and items."""
    vectors, catalogue = (
        _by_shard(stored.blocks(columns), num_shards, num_tried)
        for stored, columns in ((embeddings, ["item_id", "embedding"]), (items, ["item_id", "code"]))
    )
    found = []
    for shard in sorted(vectors):
        rows, known = (
            one_block(blocks, blocks[0].schema, FEWER_ITEMS) for blocks in (vectors.pop(shard), catalogue.pop(shard))
        )
        rows = rows.take(pc.sort_indices(rows["item_id"]))
        codes = known["code"].take(pc.index_in(rows["item_id"], known["item_id"]))
        found.append(ShardVectors(codes.to_numpy().astype(np.int64), vectors_of(rows["embedding"])))
    return found


def _by_shard(blocks: Iterable[Block], num_shards: int, num_tried: int) -> dict[int, list[Block]]:
    found: dict[int, list[Block]] = {}
    for block in blocks:
        for shard, part in key_by_shard(block, num_shards):
            if shard < num_tried:
                found.setdefault(shard, []).append(part)
    return found


def cpu_seconds_of(work: Callable[[], Any]) -> tuple[Any, float]:
    """Returns what `work` returns, and the CPU time of this thread that it took; quick work is done a few times."""
    seconds: list[float] = []
    while len(seconds) < _REPEATS and sum(seconds) < _REPEATED_BELOW_SEC:
        started = time.thread_time()
        result = work()
        seconds.append(time.thread_time() - started)
    return result, statistics.median(seconds)


def find_truth(shards: Sequence[ShardVectors], sample: UserSample, k: int) -> Truth:
    """Finds the exact lists of the sample, and the CPU time that they take.

    Raises:
      InputError: if the sample is empty.
    """
    if not len(sample):
        raise InputError("no user has a vector, so there is nobody to search for: check the ratings and --min_rating")
    found = []
    for number, each in enumerate(shards):
        shard = each.build(EXACT, 0)

        def search(shard: Shard = shard) -> np.ndarray:
            lists = [np.zeros((0, k), np.uint64)]
            for start in range(0, len(sample), _ONE_THREAD):
                rows = np.arange(start, min(start + _ONE_THREAD, len(sample)))
                lists.append(search_block([shard], sample.queries[rows], sample.excluded.take(rows), k, SearchSettings())[0])
            return np.concatenate(lists)

        keys, seconds = cpu_seconds_of(search)
        found.append(ExactLists(number, shard.index.plan, keys, seconds))
    return truth_of(found, k)


def answer_alone(shard: Shard, requests: Sequence[Request], settings: SearchSettings) -> list[Answer]:
    """Answers requests from one shard, in this thread alone."""
    answers = []
    for request in requests:
        pieces = [slice(start, start + _ONE_THREAD) for start in range(0, len(request.rows), _ONE_THREAD)]
        parts = [
            shard.answer(replace(request, rows=request.rows[piece], queries=request.queries[piece]), settings)
            for piece in pieces
        ]
        answers.append(Answer(np.concatenate([each.keys for each in parts]), np.concatenate([each.bounds for each in parts])))
    return answers


def try_search(shards: Sequence[Shard], trial: SearchTrial, truth: Truth, sample: UserSample) -> TrialResult:
    """Searches for the sample as it would be served, and judges what is found."""
    for _ in range(MAX_ROUNDS - 1):  # The last round is exact, and the exact lists are known.
        answers = []
        for number, shard in enumerate(shards):
            if trial.requests:
                found, seconds = cpu_seconds_of(partial(answer_alone, shard, trial.requests, trial.settings))
                answers.append(ShardAnswers(number, found, seconds))
        trial = settle_trial(trial, answers, truth, sample)
    return judge_trial(trial, truth)


def try_build(
    shards: Sequence[ShardVectors],
    ask: BuildSettings,
    seed: int,
    truth: Truth,
    sample: UserSample,
    calibration: CalibrationSettings,
    sweep: Sweep,
) -> Block:
    """Builds the shards in one way and searches them in many.

    Search settings go from few leaves to many, and from a small reorder size to a large one. What cannot matter is left out:
    a larger reorder size where the last one found nothing more, more leaves where everything is found, and whatever costs as
    much as exact search.

    Args:
      shards: their vectors.
      ask: how to build.
      seed: of the clustering.
      truth: what is compared with.
      sample: the users that are searched for.
      calibration: what must be found.
      sweep: what is tried.

    Returns:
      Rows of SEARCH_TRIALS, none of them chosen yet.
    """
    started = time.thread_time()
    built = [each.build(ask, seed) for each in shards]
    build_seconds = time.thread_time() - started
    plans = [each.index.plan for each in built]
    truth = replace(truth, plans=plans)
    exact = start_trial(SearchSettings(exact=True), truth, sample, calibration.k)
    tried: list[TrialResult] = []
    if all(each.index.is_exact for each in built):
        # Its answers are the truth, and what they took is known.
        tried = [replace(judge_trial(exact, truth), seconds=truth.seconds)]
    for settings in [] if tried else sweep.searches(max(each.num_leaves for each in plans)):
        best = 0.0
        for each in settings:
            trial = start_trial(each, truth, sample, calibration.k)
            if trial.cost >= exact.cost and not sweep.past_exact:
                break
            tried.append(try_search(built, trial, truth, sample))
            if tried[-1].recall - best < _WORTHWHILE:
                break
            best = tried[-1].recall
        if best >= _EVERYTHING:
            break
    return trials_block(ask, plans, tried, len(sample), build_seconds, calibration)


@dataclass
class _Held:
    """What a process keeps; a list itself cannot be referred to weakly."""

    shards: list[ShardVectors]


class _OnVectors(beam.DoFn):
    """Does something with the shards' vectors, which a process reads once."""

    def __init__(self, shared: Shared, read: Callable[[], list[ShardVectors]]) -> None:
        super().__init__()
        self._shared = shared
        self._read = read

    def setup(self) -> None:
        self._held = self._shared.acquire(lambda: _Held(self._read()))


class _FindTruth(_OnVectors):
    def process(self, sample: UserSample, k: int) -> Iterator[Truth]:
        yield find_truth(self._held.shards, sample, k)


class _TryBuild(_OnVectors):
    def process(
        self,
        ask: BuildSettings,
        seed: int,
        truth: Truth,
        sample: UserSample,
        calibration: CalibrationSettings,
        sweep: Sweep,
    ) -> Iterator[Block]:
        yield try_build(self._held.shards, ask, seed, truth, sample, calibration, sweep)


@dataclass
class TuneIndex(beam.PTransform):
    """Tries ways to build and search the index of some shards for a sample of users; gives blocks of SEARCH_TRIALS.

    A trial is an element, and holds one whole index of the shards that are tried.

    Attributes:
      embeddings: the stored embeddings.
      items: the stored catalogue.
      num_shards: of the index.
      num_tried: shards that are tried: the first ones.
      seed: of the clustering.
      builds: the ways to build; exact search is tried as well.
      calibration: what must be found.
      sweep: how each is searched.
    """

    embeddings: StoredFolder
    items: StoredFolder
    num_shards: int
    num_tried: int
    seed: int
    builds: Sequence[BuildSettings]
    calibration: CalibrationSettings
    sweep: Sweep

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, drawn: beam.PCollection[UserSample]) -> beam.PCollection[Block]:
        vectors = (Shared(), partial(read_shards, self.embeddings, self.items, self.num_shards, self.num_tried))
        truth = drawn | "FindTruth" >> beam.ParDo(_FindTruth(*vectors), self.calibration.k)
        return (
            drawn.pipeline
            | "Builds" >> beam.Create([EXACT, *self.builds])
            | "SpreadBuilds" >> beam.Reshuffle()
            | "TryBuild"
            >> beam.ParDo(
                _TryBuild(*vectors), self.seed, AsSingleton(truth), AsSingleton(drawn), self.calibration, self.sweep
            ).with_output_types(Block)
        )
