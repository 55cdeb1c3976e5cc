"""Every combiner gives the same merged as unmerged, in any grouping, and leaves what it is given as it was."""

import pickle
from collections.abc import Callable
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from schemas.description import ITEMS_BY_LISTINGS
from schemas.storage import WrittenFile
from schemas.users import USERS
from transforms.evaluate.describe_table import AddUp, KeepFirst
from transforms.evaluate.findings import FAULTS, Findings
from transforms.evaluate.judge import _MergeFindings
from transforms.index.calibrate import SampleUsers
from transforms.index.embed import vector_column
from transforms.ingest.catalogue import FindRanges
from transforms.ingest.histories import ITEM_COUNTS
from transforms.ingest.rejects import MergeSummaries
from transforms.ingest.split import FindCut, FindLatest
from transforms.io.write import Counts, MergeReports
from transforms.lists.canaries import Measured, MergeMeasured
from transforms.search.ranking_metrics import JudgeRankings, MeanOfRows
from transforms.search.top_k import Lists

Made = tuple[beam.CombineFn, list[Any]]


def findings() -> Made:
    found = []
    for at in range(6):
        each = Findings(np.array([1 << at, at], np.uint8))
        each.note(list(FAULTS)[at % 2], np.arange(at + 1), pa.array([f"u{at}-{row}" for row in range(at + 1)]))
        each.count(users=at, jaccard=at / 2)
        each.gains = np.full((2, 4), float(at))
        found.append(each)
    return _MergeFindings(), found


def measured() -> Made:
    rng = np.random.default_rng(0)
    scores = rng.permutation(48).reshape(6, 2, 4).astype(np.float64)
    return MergeMeasured(3), [Measured(each[:, :3], each[:, 3], each[:, 0].astype(np.int64), each[0, 0]) for each in scores]


def sampled() -> Made:
    def block(at: int) -> pa.RecordBatch:
        lists = pa.array([[]] * 3, pa.list_(pa.string()))
        columns = [pa.array([f"u{at}{row}" for row in range(3)]), *[lists] * (len(USERS) - 1)]
        vectors = vector_column(np.ones((3, 2), np.float32), np.array([True, at % 2 == 0, True]))
        return pa.RecordBatch.from_arrays([*columns, vectors], [*USERS.names, "vector"])

    return SampleUsers(4, 2), [block(at) for at in range(6)]


def counts() -> Made:
    blocks = [[[f"{row * 7 % 10}{at}" for row in range(5)], *[[row * at for row in range(5)]] * 3] for at in range(6)]
    return FindRanges(3, sample_ids=9, bytes_a_range=10), [
        pa.RecordBatch.from_arrays(each, schema=ITEM_COUNTS) for each in blocks
    ]


def numbers() -> list[pa.RecordBatch]:
    return [pa.RecordBatch.from_arrays([[at % 3, at + 1], [at, 1]], schema=ITEMS_BY_LISTINGS) for at in range(6)]


def rated() -> list[pa.RecordBatch]:
    return [
        pa.record_batch({"user_id": [f"{at}", "v"], "item_id": ["a", f"{at}"], "timestamp": [at, 100 - at]}) for at in range(6)
    ]


def rankings() -> Made:
    rng = np.random.default_rng(0)
    lists = [rng.permutation(9)[:4].reshape(1, 4).astype(np.int64) for _ in range(6)]
    return JudgeRankings([1, 4], 9), [(codes, Lists.of([[at, 8]])) for at, codes in enumerate(lists)]


def summaries() -> Made:
    def summary(at: int) -> dict[str, Any]:
        reason = {"count": at + 1, "position": 10 - at, "source": "f", "example": {"user_id": str(at)}}
        return {"rows": at, "reasons": {f"r{at % 2}": reason}}

    return MergeSummaries(), [summary(at) for at in range(6)]


def reports() -> Made:
    files = [WrittenFile(f"f{at}", at, at, "") for at in (2, 0, 1)]
    return MergeReports(), [*files, Counts({"a": 1, "b": 2.5}), Counts({"a": 2}), {"same": [1], "of": {"x": 1}}]


COMBINERS: list[Callable[[], Made]] = [
    findings,
    measured,
    sampled,
    counts,
    lambda: (AddUp(ITEMS_BY_LISTINGS, 1), numbers()),
    lambda: (KeepFirst(ITEMS_BY_LISTINGS, 4, [("listings", "descending"), ("items", "ascending")]), numbers()),
    lambda: (FindCut(0.4, 5), rated()),
    lambda: (FindLatest(), rated()),
    rankings,
    lambda: (MeanOfRows(), [np.arange(float(at)) for at in range(6)]),
    summaries,
    reports,
]


@pytest.mark.parametrize("make", COMBINERS)
def test_any_grouping_gives_the_same_and_what_is_given_stays(make: Callable[[], Made]) -> None:
    combine, elements = make()
    before = [pickle.dumps(each) for each in elements]

    def added(some: list[Any]) -> Any:
        accumulator = combine.create_accumulator()
        for each in some:
            accumulator = combine.add_input(accumulator, each)
        return accumulator

    expected = _plain(combine.extract_output(added(elements)))
    for groups in ([[0, 1], [2, 3, 4, 5]], [[0], [1], [2], [3], [4], [5]], [[0, 1, 2, 3, 4, 5], []]):
        accumulators = [added([elements[at] for at in group]) for group in groups]
        given = [pickle.dumps(each) for each in accumulators]
        assert _plain(combine.extract_output(combine.merge_accumulators(accumulators))) == expected
        twice = combine.merge_accumulators([combine.merge_accumulators(accumulators[:1]), *accumulators[1:]])
        assert _plain(combine.extract_output(twice)) == expected
        assert [pickle.dumps(each) for each in accumulators] == given
    assert [pickle.dumps(each) for each in elements] == before


def test_a_runner_that_gives_an_element_to_two_steps_gets_the_same_of_both() -> None:
    """It does not copy what it passes on within a process."""
    combine, elements = findings()
    expected = _plain(combine.extract_output(combine.merge_accumulators(elements)))
    with TestPipeline("FnApiRunner") as pipeline:
        found = pipeline | beam.Create(elements)
        for name in ("One", "Other"):
            merged = found | name >> beam.CombineGlobally(_MergeFindings()) | f"Plain{name}" >> beam.Map(_plain)
            assert_that(merged, equal_to([expected]), label=f"Check{name}")


def _plain(made: Any) -> Any:
    """Returns what was made in values that compare; rows that a sample keeps come in any order."""
    if isinstance(made, pa.RecordBatch):
        return made.to_pylist()
    if isinstance(made, np.ndarray):
        return sorted(made.ravel().tolist()) if made.ndim == 1 else [_plain(each) for each in made]
    if isinstance(made, tuple):
        return [_plain(each) for each in made]
    if isinstance(made, dict):
        return {name: _plain(each) for name, each in made.items()}
    if isinstance(made, list):
        return sorted(map(repr, made))
    return {name: _plain(each) for name, each in vars(made).items()} if hasattr(made, "__dict__") else made
