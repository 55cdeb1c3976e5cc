"""Calibrates a sharded index as a Beam pipeline: a sample of users is searched for exactly, and then as each trial asks."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import AsList, AsSingleton
from apache_beam.transforms.combiners import ToList
from apache_beam.utils.shared import Shared

from schemas.blocks import Block, one_block
from schemas.storage import WrittenFile
from schemas.users import USERS
from transforms.index.build import vectors_of
from transforms.index.calibration import (
    ITEMS,
    PHASES,
    ROUNDS,
    CalibrationSettings,
    ExactLists,
    SearchTrial,
    ShardAnswers,
    TrialResult,
    Truth,
    UserSample,
    answer_trial,
    calibration_report,
    conclude,
    find_exact,
    judge_trial,
    new_trials,
    settle_trial,
    truth_of,
)
from transforms.index.load import BuiltIndex, IndexFiles, LoadedShard, ShardCache
from transforms.index.search_plan import MAX_WORKER_BYTES
from transforms.io.partition import hash_ids
from transforms.io.write import part_of
from transforms.search.id_map import IdMap
from transforms.search.list_settings import unwanted_of


class SampleUsers(beam.CombineFn):
    """Keeps so many of the users who have a vector, chosen by a hash of their ids: the same, however they come.

    Blocks are rows of USERS with their vectors (`vector`, FixedSizeList<float32>[dim], null without one); so is the sample.
    """

    def __init__(self, num_users: int, dim: int) -> None:
        super().__init__()
        self._num_users = num_users
        self._schema = USERS.append(pa.field("vector", pa.list_(pa.float32(), dim)))

    def create_accumulator(self) -> Block:
        return one_block([], self._schema)

    def add_input(self, sample: Block, block: Block) -> Block:
        return self.merge_accumulators([sample, block.filter(block["vector"].is_valid()).cast(self._schema)])

    def merge_accumulators(self, samples: Iterable[Block]) -> Block:
        users = one_block(samples, self._schema)
        return users.take(pa.array(np.argsort(hash_ids(users["user_id"], seed=4), kind="stable")[: self._num_users]))

    def extract_output(self, sample: Block) -> Block:
        return sample


def wanted_rows(items: Block, unwanted: Block) -> Iterator[Block]:
    """Yields the ids and codes of `items` that are in any list of `unwanted`'s columns, if there are any."""
    ids = pa.concat_arrays([column.flatten() for column in unwanted.columns])
    found = items.select(ITEMS.names).filter(pc.is_in(items["item_id"], ids))
    if found.num_rows:
        yield found.cast(ITEMS)


def sample_of(users: Block, items: Sequence[Block], ask: CalibrationSettings) -> UserSample:
    """Returns the sample that is searched for.

    Args:
      users: from `SampleUsers`.
      items: item_id and code of those items of the catalogue that these users must not get, at least.
      ask: what a list may hold.
    """
    table = one_block(items, ITEMS)
    id_map = IdMap(table["item_id"], table["code"].to_numpy())
    return UserSample(vectors_of(users["vector"]), id_map.lists_of(*unwanted_of(users, ask.lists).columns))


@dataclass
class DrawSample(beam.PTransform):
    """Draws the sample of users from their blocks and the items of the catalogue.

    Attributes:
      ask: how many users, and what their lists may hold.
      dim: of the vectors.
    """

    ask: CalibrationSettings
    dim: int

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, blocks: tuple[beam.PCollection[Block], beam.PCollection[Block]]) -> beam.PCollection[UserSample]:
        users, items = blocks
        drawn = users | "SampleUsers" >> beam.CombineGlobally(SampleUsers(self.ask.num_users, self.dim))
        unwanted = drawn | "Unwanted" >> beam.Map(unwanted_of, self.ask.lists)
        known = items | "KeepUnwanted" >> beam.FlatMap(wanted_rows, AsSingleton(unwanted)).with_output_types(Block)
        return drawn | "AddLists" >> beam.Map(sample_of, AsList(known), self.ask)


def _choose(
    tried: Sequence[TrialResult], phase: int, truth: Truth, sample: UserSample, ask: CalibrationSettings
) -> list[SearchTrial]:
    return new_trials(phase, truth, sample, tried, ask)


def _settle(
    trials: Sequence[SearchTrial], answers: Sequence[tuple[int, ShardAnswers]], truth: Truth, sample: UserSample
) -> list[SearchTrial]:
    return [
        settle_trial(trial, [of_shard for at, of_shard in answers if at == number], truth, sample)
        for number, trial in enumerate(trials)
    ]


def _add(tried: Sequence[TrialResult], trials: Sequence[SearchTrial], truth: Truth) -> list[TrialResult]:
    return [*tried, *(judge_trial(trial, truth) for trial in trials)]


def _report(tried: Sequence[TrialResult], truth: Truth, ask: CalibrationSettings) -> dict[str, Any]:
    return calibration_report(conclude(truth, tried, ask), ask)


class _HeldShards:
    """The shards that a process has loaded; `DoFn`s of all steps share them."""

    def __init__(self, built: BuiltIndex, root: str, max_bytes: int) -> None:
        self._built = built
        self._root = root
        self._items: dict[int, WrittenFile] = {}
        self._bytes_of: dict[int, int] = {}
        self._cache = ShardCache(lambda shard: self._index_of(shard).load(shard), self._bytes_of, max_bytes)

    def hold(self, items: WrittenFile) -> AbstractContextManager[LoadedShard]:
        """Gives the shard of a file of SHARD_ITEMS."""
        shard = part_of(items.path)
        self._items[shard] = items
        self._bytes_of[shard] = self._index_of(shard).bytes_of(shard).alone
        return self._cache.hold(shard)

    def _index_of(self, shard: int) -> IndexFiles:
        return self._built.with_items(self._root, [self._items[shard]])


class _OnShard(beam.DoFn):
    """Does something with the shard of a file of SHARD_ITEMS."""

    def __init__(self, shared: Shared, built: BuiltIndex, root: str, max_worker_bytes: int) -> None:
        super().__init__()
        self._shared = shared
        self._built = built
        self._root = root
        self._max_worker_bytes = max_worker_bytes

    def setup(self) -> None:
        self._held = self._shared.acquire(lambda: _HeldShards(self._built, self._root, self._max_worker_bytes), tag=self._root)


class _FindExact(_OnShard):
    def process(self, items: WrittenFile, sample: UserSample, k: int) -> Iterator[ExactLists]:
        with self._held.hold(items) as loaded:
            yield find_exact(part_of(items.path), loaded.shard, sample, k)


class _AnswerTrials(_OnShard):
    """Yields what a shard answers to each trial that still asks something, and the place of that trial."""

    def process(self, items: WrittenFile, trials: Sequence[SearchTrial]) -> Iterator[tuple[int, ShardAnswers]]:
        asking = [(at, trial) for at, trial in enumerate(trials) if trial.requests]
        if asking:
            with self._held.hold(items) as loaded:
                for at, trial in asking:
                    yield at, answer_trial(part_of(items.path), loaded.shard, trial)


@dataclass
class CalibrateSearch(beam.PTransform):
    """Finds the cheapest search settings that find enough, and reports them.

    Takes the files of SHARD_ITEMS, as `WriteShardItems` wrote them, and the sample. Of each trial, 8 bytes an item that a shard
    finds for a user of the sample travel to where the answers of all shards meet.

    Attributes:
      built: the index.
      root: the folder of the attempt that calibrates.
      ask: what must be found.
      max_worker_bytes: what the shards that a worker holds may take together; one is always held.
    """

    built: BuiltIndex
    root: str
    ask: CalibrationSettings
    max_worker_bytes: int = MAX_WORKER_BYTES

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, inputs: tuple[beam.PCollection[WrittenFile], beam.PCollection[UserSample]]) -> beam.PCollection[dict]:
        files, drawn = inputs
        ask, on_shard = self.ask, (Shared(), self.built, self.root, self.max_worker_bytes)
        sample = AsSingleton(drawn)
        shards = files | "SpreadShards" >> beam.Reshuffle()
        truth = (
            shards
            | "FindExact" >> beam.ParDo(_FindExact(*on_shard), sample, ask.k)
            | "GatherExact" >> ToList()
            | "MergeExact" >> beam.Map(truth_of, ask.k)
        )
        tried = truth | "NothingTried" >> beam.Map(lambda _: [])
        for phase in range(PHASES):
            trials = tried | f"Choose{phase}" >> beam.Map(_choose, phase, AsSingleton(truth), sample, ask)
            for turn in range(ROUNDS):
                answers = shards | f"Answer{phase}-{turn}" >> beam.ParDo(_AnswerTrials(*on_shard), AsSingleton(trials))
                trials = trials | f"Settle{phase}-{turn}" >> beam.Map(_settle, AsList(answers), AsSingleton(truth), sample)
            tried = tried | f"Add{phase}" >> beam.Map(_add, AsSingleton(trials), AsSingleton(truth))
        return tried | "Conclude" >> beam.Map(_report, AsSingleton(truth), ask)
