"""Calibration: what it chooses is enough for other users, nothing cheaper is, and what it measures is what is served."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that

from pipelines import run
from pipelines.cli.command import OK, run_command
from pipelines.stages import calibrate as calibrate_stage
from schemas.blocks import Block, in_blocks
from schemas.errors import InputError
from schemas.storage import WrittenFile, join
from schemas.users import USERS
from schemas.workspace import Workspace
from tests.made_data import write_ratings
from tests.made_index import MadeItems, plan_in
from transforms.index import calibrate as calibrate_module
from transforms.index.build import write_shard
from transforms.index.calibrate import CalibrateSearch, DrawSample, SampleUsers
from transforms.index.calibration import (
    EXACT_SHARDS,
    Calibration,
    CalibrationSettings,
    UserSample,
    calibrate,
    calibration_report,
    cost_of_row,
)
from transforms.index.embed import vector_column
from transforms.index.load import BuiltIndex, IndexFiles, LoadedShard, ShardCache
from transforms.index.search_plan import ShardBytes
from transforms.index.shard_items import WriteShardItems
from transforms.io.partition import key_by_shard
from transforms.search.ranking_metrics import recall_against
from transforms.search.scann_index import ShardPlan, build, plan_shard
from transforms.search.search import SearchSettings, Shard, top_k_of_block
from transforms.search.top_k import Lists

NUM_ITEMS, DIM, K = 30_000, 16, 20
ASK = CalibrationSettings(K, target_recall=0.95)
SMALL = ["--dim=8", "--l2=0.1", "--epochs=1", "--min_lift=0", "--k=3", "--num_shards=1"]


def around(centres: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """Vectors around some centres, as embeddings are."""
    return (centres[rng.integers(0, len(centres), count)] + 0.6 * rng.normal(size=(count, DIM))).astype(np.float32)


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, UserSample, UserSample]:
    """Items, a sample of users with histories of up to 100 items they would like best, and others like them."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(400, DIM))
    items = around(centres, rng, NUM_ITEMS)
    samples = []
    for count in (400, 600):
        users = around(centres, rng, count)
        liked = np.argpartition(-users @ items.T, 300, axis=1)[:, :300]
        samples.append(
            UserSample(users, Lists.of([rng.choice(row, at % 100, replace=False).tolist() for at, row in enumerate(liked)]))
        )
    return items, samples[0], samples[1]


def shards_of(items: np.ndarray, num_shards: int, num_leaves: int | None) -> list[Shard]:
    """Shards with trees of so many leaves; hashed ones where that is None."""
    shards = []
    for codes in (np.arange(start, len(items), num_shards) for start in range(num_shards)):
        plan = plan_shard(len(codes), DIM, num_leaves) if num_leaves else ShardPlan("hashed", len(codes), DIM)
        shards.append(Shard(build(items[codes], plan), codes))
    return shards


@pytest.fixture(scope="module", params=[1, 4])
def trees(request: pytest.FixtureRequest, data: tuple) -> list[Shard]:
    return shards_of(data[0], request.param, 400 // request.param)


@pytest.fixture(scope="module")
def found(trees: list[Shard], data: tuple) -> Calibration:
    return calibrate(trees, data[1], ASK)


def true_lists(items: np.ndarray, sample: UserSample, k: int) -> np.ndarray:
    """The codes that each user should get, in any order."""
    scores = sample.queries.astype(np.float64) @ items.astype(np.float64).T
    for row in range(len(sample)):
        scores[row, sample.excluded.take(np.array([row])).values] = -np.inf
    return np.argpartition(-scores, k, axis=1)[:, :k]


def test_the_choice_is_enough_for_users_outside_the_sample(trees: list[Shard], data: tuple, found: Calibration) -> None:
    items, _, others = data
    top, _ = top_k_of_block(trees, others.queries, others.excluded, K, found.search)
    recall = recall_against(top.codes, true_lists(items, others, K))
    assert not found.search.exact
    assert recall.mean > 0.95 - 2 * recall.standard_error
    # And little more than enough: there is a cheaper setting, and it costs recall.
    assert recall.mean < 0.99


def test_nothing_cheaper_is_enough(found: Calibration) -> None:
    costs = [each.cost for each in found.curve]
    (chosen,) = [at for at, each in enumerate(found.curve) if each.settings == found.search]
    assert costs == sorted(costs)
    assert found.curve[chosen].lower_bound >= 0.95
    assert chosen > 0
    assert all(each.lower_bound < 0.95 for each in found.curve[:chosen])
    assert len(found.curve) < 40


def test_recall_grows_with_leaves_and_reorder_size(found: Calibration) -> None:
    points = [each for each in found.curve if not each.settings.exact]
    compared = 0
    for one in points:
        for other in points:
            if (
                one.settings != other.settings
                and (one.settings.leaves_to_search or 0) <= (other.settings.leaves_to_search or 0)
                and one.settings.reorder_per_neighbor <= other.settings.reorder_per_neighbor
            ):
                assert other.recall >= one.recall - 0.003
                assert other.cost > one.cost
                compared += 1
    assert compared > len(points)


def test_what_is_measured_is_what_is_served(trees: list[Shard], data: tuple, found: Calibration) -> None:
    items, sample, _ = data
    truth = true_lists(items, sample, K)
    for each in found.curve:
        top, counters = top_k_of_block(trees, sample.queries, sample.excluded, K, each.settings)
        recall = recall_against(top.codes, truth)
        assert each.recall == pytest.approx(recall.mean, abs=1e-12)
        assert each.standard_error == pytest.approx(recall.standard_error, abs=1e-9)
        assert each.lower_bound == pytest.approx(recall.mean - 1.645 * recall.standard_error, abs=1e-9)
        assert (each.rows_widened, each.rows_exact) == (counters.rows_widened, counters.rows_exact)
        assert each.seconds > 0


def test_the_same_index_and_users_give_the_same_choice(trees: list[Shard], data: tuple, found: Calibration) -> None:
    again = calibrate(trees, data[1], ASK)
    assert [replace(each, seconds=0) for each in again.curve] == [replace(each, seconds=0) for each in found.curve]
    assert (again.search, again.reason) == (found.search, found.reason)


def test_rows_that_few_leaves_leave_short_are_served_exactly_and_cost_that(data: tuple) -> None:
    """Some users want more items than the opened leaves hold: the certificate sends them on to exact search, who serves too."""
    items, sample, _ = data
    shards = shards_of(items, 1, 300)
    found = calibrate(shards, sample, CalibrationSettings(150, target_recall=0.6))
    short = [each for each in found.curve if each.rows_exact and not each.settings.exact]
    assert short
    for each in short:
        top, counters = top_k_of_block(shards, sample.queries, sample.excluded, 150, each.settings)
        assert each.recall == pytest.approx(recall_against(top.codes, true_lists(items, sample, 150)).mean, abs=1e-12)
        assert each.rows_exact == counters.rows_exact < len(sample)
        assert each.cost > each.rows_exact / len(sample) * cost_of_row(shards[0].index.plan, 150, True, each.settings)


def test_an_unreachable_target_is_left_to_exact_search(trees: list[Shard], data: tuple) -> None:
    items, sample, _ = data
    found = calibrate(trees, sample, replace(ASK, target_recall=0.999, reorder_factors=(1.0,)))
    assert found.search.exact
    assert "no approximate search is sure of a recall@20 of 0.999 and costs less than an exact one: at best 0." in found.reason
    top, _ = top_k_of_block(trees, sample.queries, sample.excluded, K, found.search)
    assert recall_against(top.codes, true_lists(items, sample, K)).mean == 1


def test_a_target_of_1_is_left_to_exact_search(trees: list[Shard], data: tuple) -> None:
    found = calibrate(trees, data[1], replace(ASK, target_recall=1.0))
    assert found.search.exact
    assert found.reason == "only exact search is sure of a recall@20 of 1"
    assert len(found.curve) == 1


def test_long_lists_of_a_small_index_are_left_to_exact_search(data: tuple) -> None:
    items, sample, _ = data
    found = calibrate(shards_of(items[:2000], 1, 40), sample, CalibrationSettings(500, target_recall=0.9))
    assert found.search.exact
    assert found.reason == "exact search costs less than any approximate one that is sure of a recall@500 of 0.9"


def test_without_a_tree_only_the_reorder_size_is_chosen(data: tuple) -> None:
    items, sample, others = data
    shards = shards_of(items, 2, None)
    found = calibrate(shards, sample, ASK)
    assert {each.settings.leaves_to_search for each in found.curve} == {None}
    assert len({each.settings.reorder_per_neighbor for each in found.curve if not each.settings.exact}) > 2
    top, _ = top_k_of_block(shards, others.queries, others.excluded, K, found.search)
    assert recall_against(top.codes, true_lists(items, others, K)).mean > 0.945


def test_shards_of_different_kinds_are_calibrated_together(data: tuple) -> None:
    items, sample, _ = data
    parts = np.split(np.arange(NUM_ITEMS), [3000, 9000])
    plans = [plan_shard(3000, DIM), ShardPlan("hashed", 6000, DIM), plan_shard(NUM_ITEMS - 9000, DIM, 300)]
    shards = [Shard(build(items[codes], plan), codes) for codes, plan in zip(parts, plans, strict=True)]
    found = calibrate(shards, sample, ASK)
    top, _ = top_k_of_block(shards, sample.queries, sample.excluded, K, found.search)
    recall = recall_against(top.codes, true_lists(items, sample, K))
    assert found.search.leaves_to_search is not None
    assert recall.mean - 1.645 * recall.standard_error >= 0.95


def test_there_is_nothing_to_calibrate_where_every_shard_is_exact(data: tuple) -> None:
    items, sample, _ = data
    shards = [Shard(build(items[:500], plan_shard(500, DIM)), np.arange(500))]
    found = calibrate(shards, sample, ASK)
    assert found == Calibration(SearchSettings(), f"{EXACT_SHARDS}: there is nothing to calibrate", 0, ())


def test_without_users_who_can_be_served_the_settings_are_the_default(data: tuple) -> None:
    items, sample, _ = data
    shards = shards_of(items[:1000], 1, 10)
    nobody = UserSample(np.zeros((0, DIM), np.float32), Lists.none(0))
    sated = UserSample(sample.queries[:1], Lists.of([list(range(1000))]))
    for users in (nobody, sated):
        found = calibrate(shards, users, ASK)
        assert found.search == SearchSettings()
        assert found.reason.startswith("no user of the sample has a vector and an item to find")


def test_one_user_proves_nothing_and_is_searched_for_exactly(data: tuple) -> None:
    items, sample, _ = data
    one = UserSample(sample.queries[:1], Lists.none(1))
    found = calibrate(shards_of(items, 1, 200), one, ASK)
    assert found.search.exact
    assert found.num_users == 1
    report = json.loads(json.dumps(calibration_report(found, ASK), allow_nan=False))
    approximate = [each for each in report["calibration"]["curve"] if not each["exact"]]
    assert {each["lower_bound"] for each in approximate} == {None}


def test_the_report_tells_what_was_chosen_and_why(found: Calibration) -> None:
    report = json.loads(json.dumps(calibration_report(found, ASK), allow_nan=False))
    assert SearchSettings(**report["search"]) == found.search
    facts = report["calibration"]
    assert (facts["target_recall"], facts["k"], facts["users"]) == (0.95, K, 400)
    assert facts["reason"].startswith(f"the cheapest of {len(found.curve)} settings that is sure of a recall@20 of 0.95: 0.9")
    assert set(facts["curve"][0]) == {
        *("leaves_to_search", "reorder_per_neighbor", "exact", "recall", "standard_error", "lower_bound"),
        *("cost", "seconds", "rows_widened", "rows_exact"),
    }


@pytest.mark.parametrize("target", [0, -0.1, 1.01, float("nan")])
def test_a_target_that_is_no_share_is_refused(target: float) -> None:
    with pytest.raises(InputError, match=r"target_recall must be above 0 and at most 1, got .*: change --target_recall"):
        CalibrationSettings(10, target_recall=target)


def users_of(vectors: np.ndarray, histories: list[list[str]], known: np.ndarray) -> Block:
    """Rows of USERS with vectors."""
    nothing = pa.array([[]] * len(vectors), pa.list_(pa.string()))
    lists = {"history": pa.array(histories, pa.list_(pa.string()))}
    columns = [pa.array([f"user {at}" for at in range(len(vectors))])]
    columns += [lists.get(name, nothing) for name in USERS.names[1:]]
    schema = USERS.append(pa.field("vector", pa.list_(pa.float32(), vectors.shape[1])))
    return pa.RecordBatch.from_arrays([*columns, vector_column(vectors, known)], schema=schema)


def test_the_sample_is_the_same_however_users_come() -> None:
    rng = np.random.default_rng(1)
    known = rng.random(500) < 0.7
    users = users_of(rng.normal(size=(500, 3)).astype(np.float32), [[]] * 500, known)
    samples = []
    for rows_a_block, order in ((500, 1), (7, 1), (33, -1)):
        combine = SampleUsers(100, 3)
        blocks = list(in_blocks(users, rows_a_block))[::order]
        half = len(blocks) // 2
        parts = [combine.create_accumulator(), combine.create_accumulator()]
        for at, block in enumerate(blocks):
            parts[at > half] = combine.add_input(parts[at > half], block)
        samples.append(combine.extract_output(combine.merge_accumulators(parts)))
    assert samples[0].num_rows == 100
    assert samples[0].equals(samples[1])
    assert samples[0].equals(samples[2])
    assert set(samples[0]["user_id"].to_pylist()) <= {f"user {at}" for at in np.flatnonzero(known)}
    # A sample, not a stretch: of the first half of the users about half.
    assert 30 < sum(int(each.split()[1]) < 250 for each in samples[0]["user_id"].to_pylist()) < 70
    few = SampleUsers(1000, 3)
    assert few.add_input(few.create_accumulator(), users).num_rows == known.sum()


def catalogue_of(items: np.ndarray) -> MadeItems:
    ids = [f"item {code:05d}" for code in range(len(items))]
    return MadeItems(ids, items, np.ones(len(items), int), np.ones(len(items)))


def written_shards(catalogue: MadeItems, num_shards: int, root: str) -> BuiltIndex:
    blocks = list(key_by_shard(catalogue.block, num_shards))
    files = [file for shard, block in blocks for file in write_shard(shard, [block], root, DIM, seed=0)]
    return BuiltIndex.of(root, files, num_shards)


@pytest.mark.parametrize(("num_shards", "recommend_seen"), [(1, True), (3, False)])
def test_the_pipeline_finds_what_the_function_finds(
    data: tuple, root: str, num_shards: int, recommend_seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, sample, _ = data
    items = items[:9_000]
    monkeypatch.setattr("transforms.index.build.plan_shard", lambda count, dim: plan_shard(count, dim, 100))
    catalogue = catalogue_of(items)
    built = written_shards(catalogue, num_shards, root)
    ids = catalogue.ids
    seen = [[code for code in sample.excluded.take(np.array([row])).values if code < len(items)] for row in range(len(sample))]
    known = np.arange(len(sample)) % 4 > 0
    users = users_of(sample.queries, [[*(ids[code] for code in codes), "unknown"] for codes in seen], known)
    ask = CalibrationSettings(K, recommend_seen, 0.9, num_users=250)

    drawn = SampleUsers(250, DIM)
    chosen = [int(each.split()[1]) for each in drawn.add_input(drawn.create_accumulator(), users)["user_id"].to_pylist()]
    shards = []
    for _, block in key_by_shard(catalogue.known, num_shards):
        codes = block["code"].to_numpy()
        shards.append(Shard(build(items[codes], plan_shard(len(codes), DIM, 100), 0), codes))
    lists = Lists.of([[]] * 250 if recommend_seen else [[*seen[row], -1] for row in chosen])
    expected = calibration_report(calibrate(shards, UserSample(sample.queries[chosen], lists), ask), ask)

    def check(reports: list[dict]) -> None:
        (report,) = reports
        for each in (report, expected):
            for point in each["calibration"]["curve"]:
                assert point.pop("seconds") > 0
        assert report == expected
        assert report["calibration"]["users"] == 250
        assert not report["search"]["exact"]

    with TestPipeline("FnApiRunner") as pipeline:
        blocks = pipeline | "Users" >> beam.Create(list(in_blocks(users, 90)))
        rows = pipeline | "Items" >> beam.Create(list(in_blocks(catalogue.known, 5000)))
        of_shards = rows | WriteShardItems(join(root, "items"), built)
        drawn_sample = (blocks, rows) | DrawSample(ask, DIM)
        assert_that((of_shards, drawn_sample) | CalibrateSearch(built, join(root, "items"), ask, max_worker_bytes=1), check)


@pytest.mark.slow
def test_the_stage_calibrates_trees_and_says_so_in_its_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transforms.index.build.plan_shard", lambda count, dim: plan_shard(count, dim, 5))
    monkeypatch.setattr(calibrate_stage, "EXACT_BELOW", 0)
    flags = [*SMALL, "--num_buckets=3", f"--output={tmp_path / 'out'}"]
    assert run_command(run.main, [f"--ratings={write_ratings(tmp_path)}", *flags]) == OK
    (manifest,) = Workspace(str(tmp_path / "out")).finished("calibrate")
    facts = manifest.metrics["calibration"]
    assert (facts["k"], facts["users"], facts["target_recall"]) == (3, 60, 0.95)
    assert facts["curve"]
    assert manifest.settings["asked"]["calibration"]["k"] == 3
    SearchSettings(**manifest.metrics["search"])


def test_the_stage_leaves_small_indexes_alone(tmp_path: Path) -> None:
    flags = ["--dim=8", "--l2=0.1", "--epochs=1", "--min_lift=0", "--k=5000", f"--output={tmp_path / 'out'}"]
    assert run_command(run.main, [f"--ratings={write_ratings(tmp_path)}", *flags]) == OK
    (manifest,) = Workspace(str(tmp_path / "out")).finished("calibrate")
    assert manifest.metrics["calibration"]["k"] == 40
    assert manifest.metrics["calibration"]["reason"] == "every shard is searched exactly: there is nothing to calibrate"
    assert SearchSettings(**manifest.metrics["search"]) == SearchSettings()


def test_a_few_files_of_users_are_enough_to_draw_from() -> None:
    files = [WrittenFile(f"users/{at}", rows, 0, "") for at, rows in enumerate([0, 900, 800, 900, 900])]
    assert [file.path for file in calibrate_stage.some_users(files, 100)] == ["users/0", "users/1", "users/2"]
    assert calibrate_stage.some_users(files, 10_000) == files


@pytest.mark.slow
def test_the_stage_builds_and_searches_as_it_is_told(tmp_path: Path) -> None:
    flags = [*SMALL, "--num_buckets=3", f"--output={tmp_path / 'out'}"]
    given = ["--leaves=5", "--no_soar", "--quantization_threshold=0.3", "--leaves_to_search=4", "--reorder_per_neighbor=2.5"]
    assert run_command(run.main, [f"--ratings={write_ratings(tmp_path)}", *flags, *given]) == OK
    (indexed,), (manifest,) = (Workspace(str(tmp_path / "out")).finished(name) for name in ("index", "calibrate"))
    assert SearchSettings(**manifest.metrics["search"]) == SearchSettings(4, 2.5)
    assert manifest.metrics["calibration"]["reason"] == "given with --reorder_per_neighbor: nothing was calibrated"
    plan = plan_in(tmp_path / "out", indexed)
    assert plan == ShardPlan("tree", 40, 9, 5, 0.3, soar=False)


@pytest.mark.slow
def test_a_small_index_that_is_given_leaves_is_calibrated(tmp_path: Path) -> None:
    flags = [*SMALL, "--leaves=5", f"--output={tmp_path / 'out'}"]
    assert run_command(run.main, [f"--ratings={write_ratings(tmp_path)}", *flags]) == OK
    (manifest,) = Workspace(str(tmp_path / "out")).finished("calibrate")
    assert manifest.metrics["calibration"]["curve"]


@pytest.mark.slow
def test_shards_are_tried_within_the_memory_that_a_worker_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards that are said to take more than half of it are never held two at a time."""
    monkeypatch.setattr(IndexFiles, "bytes_of", lambda index, shard: ShardBytes(600_000, 0, 0))
    held: list[int] = []

    class Watched(ShardCache):
        def _load_and_count(self, shard: int) -> LoadedShard:
            held.append(len(self._loaded) + 1)
            return self._plain_load(shard)

        def __init__(self, load: Callable[[int], LoadedShard], bytes_of: Mapping[int, int], max_bytes: int) -> None:
            self._plain_load = load
            super().__init__(self._load_and_count, bytes_of, max_bytes)

    monkeypatch.setattr(calibrate_module, "ShardCache", Watched)
    flags = [*SMALL, "--leaves=5", "--num_shards=3", "--max_worker_bytes=1048576", f"--output={tmp_path / 'out'}"]
    assert run_command(run.main, [f"--ratings={write_ratings(tmp_path)}", *flags]) == OK
    assert len(held) >= 3
    assert max(held) == 1
