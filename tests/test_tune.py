"""What tuning tries, finds, chooses, draws and hands to `index`."""

import math
import re
import time
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from pipelines import run
from pipelines import tune as tune_command
from pipelines.cli.command import MISTAKE, OK, run_command
from pipelines.cli.config import parse_command
from pipelines.job import single_stage
from pipelines.stages import tune
from schemas.embeddings import embeddings_schema
from schemas.errors import InputError
from schemas.parquet_files import parquet_writer
from schemas.search_trials import SEARCH_TRIALS
from schemas.stage_files import TRIALS_CHART, TUNED_FILE
from schemas.storage import WrittenFile
from schemas.stored import StoredFolder
from schemas.workspace import Workspace
from tests.made_data import write_ratings
from tests.made_index import plan_in
from transforms.index.calibration import CalibrationSettings, UserSample, calibrate, start_trial
from transforms.index.embed import vector_column
from transforms.index.tune import (
    EXACT,
    ShardVectors,
    Sweep,
    TuneIndex,
    answer_alone,
    cpu_seconds_of,
    find_truth,
    read_shards,
    try_build,
)
from transforms.index.tuning_report import conclude, config_of, flags_of, front_of
from transforms.io.partition import key_by_shard, shard_of
from transforms.report.tuning_chart import chart_of
from transforms.search.scann_index import BuildSettings, ShardPlan
from transforms.search.search import SearchSettings, top_k_of_block
from transforms.search.top_k import Lists

pytestmark = pytest.mark.slow
"""These run whole jobs, or programs of their own: `make test-slow` runs them, and so does CI."""

K, DIM = 10, 8
ASK = CalibrationSettings(K, target_recall=0.9, num_users=150)
MEASURED = ["cpu_msec", "users_per_second", "build_cpu_seconds"]
TREE = BuildSettings("tree", 60, 0.2, False)


@pytest.fixture(scope="module")
def items() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(60, DIM))[rng.integers(0, 60, 12_000)] + 0.4 * rng.normal(size=(12_000, DIM))).astype(np.float32)


@pytest.fixture(scope="module")
def sample(items: np.ndarray) -> UserSample:
    rng = np.random.default_rng(1)
    users = rng.normal(size=(150, DIM)).astype(np.float32)
    best = np.argpartition(-users @ items.T, 40, axis=1)[:, :40]
    return UserSample(users, Lists.of([rng.choice(row, at % 20, replace=False).tolist() for at, row in enumerate(best)]))


def shards_of(items: np.ndarray, num_shards: int) -> list[ShardVectors]:
    of_item = shard_of(pa.array([f"i{code:05d}" for code in range(len(items))]), num_shards)
    return [ShardVectors(np.flatnonzero(of_item == shard), items[of_item == shard]) for shard in range(num_shards)]


def write_embeddings(root: str, items: np.ndarray) -> StoredFolder:
    """Writes the items to two files, the later codes first."""
    written: list[WrittenFile] = []
    for part, codes in enumerate((np.arange(5000, len(items)), np.arange(5000))):
        columns = [pa.array([f"i{code:05d}" for code in codes]), vector_column(items[codes])]
        block = pa.RecordBatch.from_arrays(columns, schema=embeddings_schema(DIM))
        with parquet_writer(root, f"part-{part}.parquet", block.schema, written) as writer:
            writer.write_batch(block)
    return StoredFolder(root, tuple(written))


def write_items(root: str, items: np.ndarray) -> StoredFolder:
    """Writes the codes of the items, the last ones first."""
    codes = np.arange(len(items))[::-1]
    block = pa.RecordBatch.from_pydict({"item_id": [f"i{code:05d}" for code in codes], "code": pa.array(codes, pa.int32())})
    written: list[WrittenFile] = []
    with parquet_writer(root, "items.parquet", block.schema, written) as writer:
        writer.write_batch(block)
    return StoredFolder(root, tuple(written))


def true_recall(items: np.ndarray, sample: UserSample, codes: np.ndarray) -> float:
    """The mean share of the ten best unseen items, by brute force."""
    scores = sample.queries.astype(np.float64) @ items.astype(np.float64).T
    for row in range(len(sample)):
        scores[row, sample.excluded.take(np.array([row])).values] = -np.inf
    best = np.argpartition(-scores, K, axis=1)[:, :K]
    return float(np.mean([len(set(mine) & set(true)) / K for mine, true in zip(codes, best, strict=True)]))


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_trial_finds_what_serving_with_its_settings_finds(items: np.ndarray, sample: UserSample, num_shards: int) -> None:
    shards = shards_of(items, num_shards)
    truth = find_truth(shards, sample, K)
    rows = try_build(shards, TREE, 0, truth, sample, ASK, Sweep(reorder_factors=(1.0, 3.0))).to_pylist()
    assert len(rows) > 5
    built = [each.build(TREE, 0) for each in shards]
    for row in rows[::3]:
        settings = SearchSettings(row["leaves_to_search"], row["reorder_per_neighbor"])
        top, counters = top_k_of_block(built, sample.queries, sample.excluded, K, settings)
        assert row["recall"] == pytest.approx(true_recall(items, sample, top.codes), abs=1e-9)
        assert (row["rows_widened"], row["rows_exact"]) == (counters.rows_widened, counters.rows_exact)
        assert row["users_per_second"] == pytest.approx(1000 / row["cpu_msec"])
        assert 0 < row["build_cpu_seconds"] < 60
    assert {(row["kind"], row["leaves"], row["soar"], row["quantization_threshold"]) for row in rows} == {
        ("tree", 60, False, 0.2)
    }


def test_trials_go_from_few_leaves_to_many_and_leave_out_what_cannot_matter(items: np.ndarray, sample: UserSample) -> None:
    shards = shards_of(items, 1)
    truth = find_truth(shards, sample, K)
    factors = (1.0, 2.0, 4.0, 8.0)
    few = try_build(shards, TREE, 0, truth, sample, ASK, Sweep(reorder_factors=factors))
    everything = try_build(shards, TREE, 0, truth, sample, ASK, Sweep(reorder_factors=factors, past_exact=True))
    leaves = few["leaves_to_search"].to_pylist()
    assert leaves == sorted(leaves)
    by_leaves: dict[int, list[float]] = {}
    for row in few.to_pylist():
        by_leaves.setdefault(row["leaves_to_search"], []).append(row["recall"])
    for recalls in by_leaves.values():
        assert (np.diff(recalls[:-1]) >= 5e-4).all()
    exact = try_build(shards, EXACT, 0, truth, sample, ASK, Sweep()).to_pylist()
    assert len(exact) == 1
    assert (exact[0]["kind"], exact[0]["recall"], exact[0]["standard_error"], exact[0]["is_enough"]) == ("exact", 1, 0, True)
    assert exact[0]["users_per_second"] == pytest.approx(len(sample) / truth.seconds)
    assert max(few["cost"].to_pylist()) < exact[0]["cost"]
    assert everything.num_rows > few.num_rows
    every_row = everything.drop_columns(MEASURED).to_pylist()
    assert all(row in every_row for row in few.drop_columns(MEASURED).to_pylist())


def test_what_is_enough_here_is_enough_for_calibration(items: np.ndarray, sample: UserSample) -> None:
    """Both judge the same settings of the same index alike."""
    shards = shards_of(items, 2)
    found = calibrate([each.build(TREE, 0) for each in shards], sample, ASK)
    rows = try_build(shards, TREE, 0, find_truth(shards, sample, K), sample, ASK, Sweep()).to_pylist()
    mine = {(row["leaves_to_search"], row["reorder_per_neighbor"]): row for row in rows}
    both = [each for each in found.curve if (each.settings.leaves_to_search, each.settings.reorder_per_neighbor) in mine]
    assert both
    for each in both:
        row = mine[each.settings.leaves_to_search, each.settings.reorder_per_neighbor]
        assert (row["recall"], row["standard_error"], row["cost"]) == (each.recall, each.standard_error, each.cost)
        assert row["is_enough"] == (each.lower_bound >= ASK.target_recall)


def test_a_search_in_one_thread_answers_the_same(items: np.ndarray) -> None:
    """More rows than one call takes."""
    rng = np.random.default_rng(2)
    shards = shards_of(items, 1)
    users = rng.normal(size=(700, DIM)).astype(np.float32)
    many = UserSample(users, Lists.none(700))
    shard = shards[0].build(TREE, 0)
    trial = start_trial(SearchSettings(20, 2.0), find_truth(shards, many, K), many, K)
    assert len(trial.requests[0].rows) == 700
    alone = answer_alone(shard, trial.requests, trial.settings)
    for mine, request in zip(alone, trial.requests, strict=True):
        expected = shard.answer(request, trial.settings)
        np.testing.assert_array_equal(mine.keys, expected.keys)
        np.testing.assert_array_equal(mine.bounds, expected.bounds)


def test_time_is_that_of_this_thread_and_sleep_is_none() -> None:
    _, seconds = cpu_seconds_of(partial(time.sleep, 0.05))
    assert seconds < 0.04


def test_vectors_are_read_by_shard_in_the_order_of_their_ids(items: np.ndarray, tmp_path: Path) -> None:
    stored = write_embeddings(str(tmp_path), items), write_items(str(tmp_path), items)
    for mine, expected in zip(read_shards(*stored, 3, 2), shards_of(items, 3)[:2], strict=True):
        np.testing.assert_array_equal(mine.codes, expected.codes)
        np.testing.assert_array_equal(mine.vectors, expected.vectors)
    assert len(list(key_by_shard(pa.RecordBatch.from_pydict({"item_id": ["i1"]}), 50))) == 1
    assert len(read_shards(*stored, 12_000_000, 1_000)) < 10  # Shards without items are left out.


def test_the_transform_finds_what_the_function_finds(items: np.ndarray, sample: UserSample, tmp_path: Path) -> None:
    stored = write_embeddings(str(tmp_path), items), write_items(str(tmp_path), items)
    builds, sweep = [TREE, BuildSettings("hashed", None, 0.4)], Sweep(leaves_to_search=(5, 10), reorder_factors=(2.0, 4.0))
    shards = read_shards(*stored, 2, 2)
    truth = find_truth(shards, sample, K)
    blocks = [try_build(shards, each, 3, truth, sample, ASK, sweep) for each in (EXACT, *builds)]
    expected = conclude(blocks).drop_columns([*MEASURED, "is_front"])

    def check(found: list[pa.RecordBatch]) -> None:
        assert len(found) == 3
        assert conclude(found[::-1]).drop_columns([*MEASURED, "is_front"]).equals(expected)

    with TestPipeline("FnApiRunner") as pipeline:
        drawn = pipeline | beam.Create([sample])
        assert_that(drawn | TuneIndex(*stored, 2, 2, 3, builds, ASK, sweep), check)


def test_nobody_to_search_for_is_a_mistake(items: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"^no user has a vector, so there is nobody to search for: check the ratings"):
        find_truth(shards_of(items, 1), UserSample(np.zeros((0, DIM), np.float32), Lists.none(0)), K)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=20))
def test_the_front_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    recalls, speeds = (np.array(each, float) for each in zip(*points, strict=True))
    front = front_of(recalls, speeds)
    for at, (recall, speed) in enumerate(points):
        better = [(r, s) for r, s in points if r >= recall and s >= speed and (r, s) != (recall, speed)]
        # Of equal points, the first stands for all.
        assert front[at] == (not better and points.index((recall, speed)) == at)


def trial(**values: object) -> dict:
    row = {
        "kind": "tree",
        "leaves": 50,
        "quantization_threshold": 0.2,
        "soar": True,
        "leaves_to_search": 5,
        "reorder_per_neighbor": 2.0,
        "recall": 0.9,
        "standard_error": 0.0,
        "lower_bound": 0.9,
        "cost": 10.0,
        "cpu_msec": 1.0,
        "users_per_second": 1000.0,
        "rows_widened": 0,
        "rows_exact": 0,
        "build_cpu_seconds": 1.0,
        "index_bytes": 100,
    }
    return row | {"is_enough": False, "is_front": False, "is_chosen": False} | values


EXACT_TRIAL = trial(
    kind="exact",
    leaves=1,
    quantization_threshold=None,
    soar=False,
    leaves_to_search=None,
    reorder_per_neighbor=None,
    recall=1.0,
    lower_bound=1.0,
    cost=99.0,
    users_per_second=50.0,
    is_enough=True,
)


def table_of(*rows: dict) -> pa.Table:
    return conclude([pa.RecordBatch.from_pylist([row], SEARCH_TRIALS) for row in rows])


def test_the_cheapest_that_is_enough_is_chosen_and_the_clock_has_no_say() -> None:
    fast = trial(cost=50.0, recall=0.96, is_enough=True, users_per_second=9000.0)
    cheap = trial(cost=40.0, recall=0.95, is_enough=True, users_per_second=10.0, leaves=70)
    table = table_of(EXACT_TRIAL, fast, cheap, trial(cost=5.0))
    assert [row["cost"] for row in table.to_pylist()] == [5, 40, 50, 99]
    assert table["is_chosen"].to_pylist() == [False, True, False, False]
    assert table["is_front"].to_pylist() == [False, False, True, True]
    # Equal costs: always the same one.
    equal = [trial(cost=40.0, is_enough=True, leaves=leaves, soar=soar) for leaves in (60, 30) for soar in (True, False)]
    assert table_of(*equal).equals(table_of(*equal[::-1]))


def test_exact_search_is_chosen_where_nothing_else_is_enough() -> None:
    (chosen,) = [row for row in table_of(trial(), EXACT_TRIAL).to_pylist() if row["is_chosen"]]
    assert chosen["kind"] == "exact"
    assert flags_of(chosen, 3, 0.95) == {"num_shards": 3, "target_recall": 0.95, "index_kind": "exact"}


@pytest.mark.parametrize("soar", [True, False])
def test_the_chosen_settings_are_flags_of_index(tmp_path: Path, soar: bool) -> None:
    config = tmp_path / "tuned.yaml"
    config.write_text(config_of(trial(soar=soar, lower_bound=0.89), 4, ASK))
    assert "recall@10 0.9000, with a lower bound of 0.8900" in config.read_text().splitlines()[0]
    asked = parse_command([f"--output={tmp_path}", f"--config={config}"], "")[0].index
    assert asked.build == BuildSettings("tree", 50, 0.2, soar)
    assert asked.search == SearchSettings(5, 2.0)
    assert (asked.num_shards, asked.target_recall) == (4, 0.9)


def test_the_plot_shows_every_kind_the_front_the_target_and_the_choice() -> None:
    rows = [EXACT_TRIAL, trial(recall=0.95, is_enough=True, cost=20.0), trial(soar=False), trial(kind="hashed", soar=False)]
    root = ET.fromstring(chart_of(table_of(*rows), ASK.k, ASK.target_recall, 12_345))
    texts = [element.text for element in root.iter() if element.text]
    for text in ("Searching 12,345 vectors: recall against speed", "Pareto front", "chosen", "target 0.9", "exact", "hashed"):
        assert text in texts
    assert {"tree, SOAR", "tree, no SOAR", "recall@10", "users a second, one core (CPU time)"} <= set(texts)
    assert any("5 of 50 leaves, threshold 0.2, reorder 2 a neighbor, recall 0.9500" in text for text in texts)


def test_what_is_tried_by_default_goes_with_the_size() -> None:
    builds = Sweep().builds(1_000_000)
    assert len(builds) == 4 * 2 * 2
    assert {each.num_leaves for each in builds} == {1000, 2000, 3000, 5000}
    small = Sweep(thresholds=(0.3,), soar="no").builds(90_000)
    assert small[0] == BuildSettings("hashed", None, 0.3)
    assert small[1:] == [BuildSettings("tree", leaves, 0.3, False) for leaves in (300, 600, 900, 1500)]
    assert Sweep(leaves=(7,), thresholds=(0.3,), soar="yes").builds(90_000) == [BuildSettings("tree", 7, 0.3, True)]
    searches = Sweep(reorder_factors=(3.0, 1.0)).searches(1000)
    assert [group[0].leaves_to_search for group in searches][:3] == [8, 11, 16]
    assert [each.reorder_per_neighbor for each in searches[0]] == [1.0, 3.0]
    assert Sweep(reorder_factors=(2.0,)).searches(1) == [[SearchSettings(None, 2.0)]]
    assert Sweep(leaves_to_search=(900, 5), reorder_factors=(2.0,)).searches(100) == [
        [SearchSettings(5, 2.0)],
        [SearchSettings(100, 2.0)],
    ]


def test_a_trial_takes_as_many_shards_as_fit_a_worker() -> None:
    assert tune.shards_to_try(1_000_000, 64, 4, 4 << 30) == 4
    assert tune.shards_to_try(100_000_000, 64, 40, 4 << 30) == 2
    assert tune.shards_to_try(100_000_000, 64, 4, 1 << 20) == 1


FLAGS = ["--dim=8", "--l2=0.1", "--epochs=1", "--min_lift=0", "--k=3", "--num_shards=2", "--num_buckets=3"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    ratings = write_ratings(folder, num_users=80, num_items=300)
    assert run_command(run.main, [f"--ratings={ratings}", *FLAGS, f"--output={folder / 'out'}"]) == OK
    return folder / "out"


def test_tuning_ends_in_a_table_a_plot_and_settings_that_index_takes(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*FLAGS, "--tune_small", "--tune_leaves=4,8", "--tune_leaves_to_search=2,4", f"--output={job}"]
    assert run_command(tune_command.main, flags) == OK
    shown = capsys.readouterr()
    assert re.search(r"the Pareto front of \d+ trials", shown.out)
    (manifest,) = [each for each in Workspace(str(job)).finished("tune") if each.settings["builds"]]
    folder = job / manifest.folder
    table = pq.read_table(manifest.paths(str(job), "trials")[0])
    assert table.schema.equals(SEARCH_TRIALS)
    assert len(table) == manifest.metrics["trials"]
    assert {"exact", "tree"} == set(table["kind"].to_pylist())
    assert sum(table["is_chosen"].to_pylist()) == 1
    assert ET.parse(folder.parent / TRIALS_CHART).getroot().tag.endswith("svg")
    assert f"--config {folder / TUNED_FILE}" in shown.out

    assert run_command(tune_command.main, flags) == OK  # Done already.
    assert len([each for each in Workspace(str(job)).finished("tune") if each.settings["builds"]]) == 1

    chosen = manifest.metrics["chosen"]
    assert (
        run_command(single_stage.stage_command("index"), [*FLAGS, f"--output={job}", f"--config={folder / TUNED_FILE}"]) == OK
    )
    indexed = Workspace(str(job)).finished("index")[-1]
    plan = plan_in(job, indexed)
    assert plan.kind == chosen["kind"] == yaml.safe_load((folder / TUNED_FILE).read_text())["index_kind"]


def test_an_approximate_choice_is_what_index_then_builds_and_searches(job: Path, tmp_path: Path) -> None:
    config = tmp_path / "tuned.yaml"
    config.write_text(config_of(trial(leaves=6, leaves_to_search=2, soar=False, quantization_threshold=0.4), 1, ASK))
    for name in ("index", "calibrate"):
        assert run_command(single_stage.stage_command(name), [f"--output={job}", "--k=3", f"--config={config}"]) == OK
    indexed, calibrated = (Workspace(str(job)).finished(name)[-1] for name in ("index", "calibrate"))
    assert SearchSettings(**calibrated.metrics["search"]) == SearchSettings(2, 2.0)
    plan = plan_in(job, indexed)
    assert plan == ShardPlan("tree", plan.num_vectors, 9, 6, 0.4, False)


def test_a_small_catalogue_is_said_to_be_exact(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(tune_command.main, [*FLAGS, f"--output={job}"]) == OK
    assert re.search(
        r"a shard of 1\d\d vectors is searched exactly, as all below 20,000 are, so there is nothing to tune: "
        "--tune_small tries the other ways all the same",
        capsys.readouterr().err,
    )
    (manifest,) = [each for each in Workspace(str(job)).finished("tune") if not each.settings["builds"]]
    assert manifest.metrics["trials"] == 1
    assert manifest.metrics["chosen"]["kind"] == "exact"
    assert math.isfinite(manifest.metrics["chosen"]["users_per_second"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tune_soar=maybe"], "tune_soar must be one of both, yes, no, got 'maybe': change --tune_soar"),
        (
            ["--tune_leaves=many"],
            "--tune_leaves takes numbers with commas between them, got 'many': write it as --tune_leaves 1,2,3",
        ),
        (["--tune_leaves=0"], "the number of leaves must be at least 1, got 0"),
        (["--tune_thresholds=2"], "quantization_threshold must be from 0 to below 1, got 2"),
        (["--tune_thresholds="], "there is nothing to try without any value of --tune_thresholds: give one or leave it out"),
        (["--tune_reorder=0"], "reorder per neighbor must be a number from 1 on, got 0"),
        (["--tune_leaves_to_search=0"], "leaves to search must be at least 1, got 0"),
    ],
)
def test_mistakes_are_one_line(flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(tune_command.main, [*flags, f"--output={tmp_path}"]) == MISTAKE
    assert f"error: {message}" in capsys.readouterr().err.replace("\n", " ")


def test_tuning_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(tune_command.main, [f"--output={tmp_path}"]) == MISTAKE
    assert "tune needs embed, which is not done below" in capsys.readouterr().err
