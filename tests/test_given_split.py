"""A split that is given: a file of its own is held out, nothing of it is learned from, and the lists are judged by it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines import run
from pipelines.cli.command import MISTAKE, OK, run_command
from pipelines.cli.config import parse_command
from pipelines.job import finished
from pipelines.job.prepare import Job
from schemas.errors import InputError
from schemas.interactions import VALID
from schemas.parquet_files import read_parquet_blocks
from transforms.ingest.histories import HELD_OUT_TWICE, SplitTimes, split_bucket
from transforms.ingest.split import SplitSettings

GIVEN = SplitSettings("given", 0)
NOW = SplitTimes(None, 0, 1.0)
QUICK = ["--dim=8", "--l2=0.1", "--epochs=1", "--batch_size=64", "--num_shards=2", "--num_buckets=2", "--k=5", "--min_lift=0"]


def block_of(rows: list[tuple[str, str, float, int]]) -> pa.RecordBatch:
    users, items, ratings, times = zip(*rows, strict=True)
    columns = [pa.array(users), pa.array(items), pa.array(ratings, pa.float32()), pa.array(times), pa.array(range(len(rows)))]
    return pa.RecordBatch.from_arrays(columns, schema=VALID)


def pairs_of(blocks: list[pa.RecordBatch]) -> set[tuple[str, str]]:
    return {(row["user_id"], row["item_id"]) for block in blocks for row in block.to_pylist()}


def test_what_is_held_out_is_what_the_file_says() -> None:
    rated = [("b", "x", 5.0, 3), ("a", "y", 1.0, 1), ("a", "x", 4.0, 2), ("a", "x", 5.0, 9)]
    held = [("a", "z", 5.0, 1), ("a", "z", 2.0, 5), ("c", "x", 3.0, 4)]
    bucket = split_bucket([block_of(rated)], GIVEN, NOW, [block_of(held)])
    assert pairs_of(bucket.train) == {("b", "x"), ("a", "y"), ("a", "x")}
    assert pairs_of(bucket.holdout) == {("a", "z"), ("c", "x")}
    users = {row["user_id"]: row for block in bucket.users for row in block.to_pylist()}
    assert {user: (row["history"], row["holdout"]) for user, row in users.items()} == {
        "a": (["y", "x"], ["z"]),
        "b": (["x"], []),
        "c": ([], ["x"]),
    }
    assert (bucket.metrics["rows_repeated"], bucket.metrics[HELD_OUT_TWICE]) == (1, 0)
    counts = {
        row["item_id"]: (row["train_count"], row["holdout_count"]) for block in bucket.item_counts for row in block.to_pylist()
    }
    assert counts == {"x": (2, 1), "y": (1, 0), "z": (0, 1)}


def test_pairs_that_are_in_both_are_counted() -> None:
    rated = [("a", "x", 5.0, 1), ("a", "y", 5.0, 2), ("b", "x", 5.0, 3)]
    held = [("a", "x", 5.0, 9), ("b", "y", 5.0, 9), ("b", "x", 5.0, 9)]
    assert split_bucket([block_of(rated)], GIVEN, NOW, [block_of(held)]).metrics[HELD_OUT_TWICE] == 2


def test_a_positive_is_one_in_both_files() -> None:
    rated, held = [("a", "x", 5.0, 1), ("a", "y", 2.0, 1)], [("a", "z", 2.0, 1), ("a", "w", 4.0, 1)]
    bucket = split_bucket([block_of(rated)], SplitSettings("given", 0, 3.0), NOW, [block_of(held)])
    assert (pairs_of(bucket.train), pairs_of(bucket.holdout)) == ({("a", "x")}, {("a", "w")})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split=given"], "--split given holds out the ratings of --heldout: give --heldout FILE, or change --split"),
        (
            ["--heldout=h.csv"],
            "--heldout h.csv is held out with --split given, got --split random: use --split given",
        ),
        (["--split=given", "--heldout="], "--heldout is empty, and must name a source"),
        (["--split=given", "--heldout=h.csv", "--refit"], "--split given keeps that apart: leave --refit out"),
    ],
)
def test_flags_that_do_not_fit_are_refused(tmp_path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_command([f"--output={tmp_path}/out", "--ratings=r.csv", *flags], "")
    assert message in str(error.value)


def write_pairs(path: Path, pairs: np.ndarray) -> str:
    path.write_text("user_id,item_id\n" + "".join(f"u{user:03},i{item:03}\n" for user, item in pairs), encoding="utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """Ratings of users who like the even or the odd items, a sixth of them held out."""
    rng = np.random.default_rng(0)
    pairs = np.array([(user, item) for user in range(60) for item in rng.permutation(np.arange(user % 2, 60, 2))[:18]])
    held = rng.random(len(pairs)) < 1 / 6
    write_pairs(tmp_path / "train.csv", pairs[~held])
    write_pairs(tmp_path / "test.csv", pairs[held])
    return tmp_path, pairs[~held], pairs[held]


def test_a_job_learns_nothing_of_the_held_out_file_and_is_judged_by_it(
    files: tuple[Path, np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, rated, held = files
    flags = [f"--output={folder}/out", *QUICK, f"--ratings={folder}/train.csv"]
    given = ["--split=given", f"--heldout={folder}/test.csv"]
    assert run_command(run.main, [*flags, *given]) == OK
    capsys.readouterr()
    made = finished.finished_before("publish", Job(parse_command([f"--output={folder}/out"], "")[0])).published
    for dataset, expected in (("interactions/train", rated), ("interactions/holdout", held)):
        found = pairs_of(
            [block for path in made["ingest"].paths(f"{folder}/out", dataset) for block in read_parquet_blocks(path)]
        )
        assert found == {(f"u{user:03}", f"i{item:03}") for user, item in expected}
    lists = {
        row["user_id"]: [each["item_id"] for each in row["recommendations"]]
        for path in made["recommend"].paths(f"{folder}/out", "topk")
        for block in read_parquet_blocks(path)
        for row in block.to_pylist()
    }
    wanted = {f"u{user:03}": {f"i{item:03}" for of, item in held if of == user} for user in set(held[:, 0])}
    recall = np.mean([len(items & set(lists[user])) / len(items) for user, items in wanted.items()])
    (release,) = (folder / "out" / "releases").glob("*/manifest.json")
    evaluated = json.loads(release.read_text(encoding="utf-8"))["evaluated"]
    assert evaluated["metrics"]["quality"]["means"]["recall@5"] == pytest.approx(recall)


def test_a_pair_that_is_in_both_files_ends_the_job_with_how_many(
    files: tuple[Path, np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, rated, held = files
    write_pairs(folder / "test.csv", np.concatenate([held, rated[:3]]))
    flags = [f"--output={folder}/out", *QUICK, f"--ratings={folder}/train.csv", "--split=given", f"--heldout={folder}/test.csv"]
    assert run_command(run.main, flags) == MISTAKE
    assert "3 pairs of --heldout are among the ratings too" in capsys.readouterr().err


def test_an_empty_held_out_file_is_refused(
    files: tuple[Path, np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, held = files
    write_pairs(folder / "test.csv", held[:0])
    flags = [f"--output={folder}/out", *QUICK, f"--ratings={folder}/train.csv", "--split=given", f"--heldout={folder}/test.csv"]
    assert run_command(run.main, flags) == MISTAKE
    assert "test.csv" in capsys.readouterr().err
