"""The whole job with features: from a config to items that nobody has rated in the lists, and every mistake in one line."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines import run, sweep
from pipelines.cli.command import MISTAKE, OK, run_command
from pipelines.cli.config import parse_command
from pipelines.engine.stage import Chain, Stage
from pipelines.job import finished
from pipelines.job.prepare import Job
from pipelines.stages import train
from schemas.parquet_files import read_parquet_blocks
from schemas.workspace import Workspace
from tests.made_data import ODD_IDS, ratings, with_flags, write_csv, write_ratings
from tests.test_run import topk_of
from transforms.train.features import Feature

pytestmark = pytest.mark.slow
"""These run whole jobs, or programs of their own: `make test-slow` runs them, and so does CI."""

QUICK = [
    *("--dim=8", "--l2=0.1", "--epochs=12", "--batch_size=64", "--learning_rate=0.02"),
    *("--k=42", "--num_shards=3", "--seed=7", "--split=none", "--recency_half_life_days=365"),
]
CONFIG = """
features:
  shelf: {kind: categories, separator: "+"}
  year: {kind: number, missing: [unknown], buckets: 4}
  name: {kind: text, buckets: 131071}
  language: category
recommend_seen: true
"""


def write_items(folder: Path) -> Path:
    """Writes the 40 items of the ratings, on two shelves as users have two tastes, and four items that nobody has rated."""
    items = [*ODD_IDS, *(f"i{at}" for at in range(40 - len(ODD_IDS)))]
    rows = [
        (item, f"Item {item[:5]}", f"shelf {at % 2}+all", "unknown" if at % 5 == 0 else str(1990 + at % 7), "en")
        for at, item in enumerate(items)
    ]
    rows += [
        ("new 0", "", "shelf 0", "", "en"),
        ("new 1", "", "shelf 1", "", "en"),
        ("no shelf", "Item", "", "unknown", ""),
        ("nothing", "zzz", "another", "", ""),
    ]
    return write_csv(folder / "items.csv", ["item_id", "name", "shelf", "year", "language"], rows)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The flags of a finished job, and its output."""
    folder = tmp_path_factory.mktemp("features")
    (folder / "job.yaml").write_text(CONFIG)
    newcomers = write_csv(folder / "users.csv", ["user_id"], [("newcomer",)])
    flags = [
        *QUICK,
        f"--ratings={write_ratings(folder)}",
        f"--items={write_items(folder)}",
        f"--users={newcomers}",
        f"--config={folder}/job.yaml",
        f"--output={folder}/out",
    ]
    assert run_command(run.main, flags) == OK
    return flags, folder / "out"


def test_items_with_a_known_value_are_in_the_index(job: tuple[list[str], Path]) -> None:
    done = finished.finished_before("publish", Job(parse_command([f"--output={job[1]}"], "")[0])).published
    items = [row for path in done["embed"].paths(str(job[1]), "embeddings") for row in _rows(path)]
    assert {row["item_id"] for row in items} == {item for _, item, *_ in ratings()} | {"new 0", "new 1", "no shelf"}
    known = [row for path in done["calibrate"].paths(str(job[1]), "shard_items") for row in _rows(path)]
    assert {row["item_id"]: row["train_count"] for row in known}["new 0"] == 0
    assert {row["item_id"] for row in known} == {row["item_id"] for row in items}
    report = done["train"].metrics["features"]
    assert {name: found["codes"] for name, found in report.items()} == {"shelf": 3, "year": 4, "title": 1, "language": 0}
    assert report["language"]["warning"] == "left out: every rated item has the same value"
    assert done["train"].metrics["feature_columns"] == ["shelf", "year", "title"]
    assert done["train"].inputs["ingest"]["datasets"] == ["interactions/train", "items"]
    assert done["recommend"].metrics["items_indexed"] == 43


def _rows(path: str) -> list[dict]:
    return [row for block in read_parquet_blocks(path) for row in block.to_pylist()]


def test_items_without_ratings_go_to_those_who_like_their_shelf(job: tuple[list[str], Path]) -> None:
    users = list(dict.fromkeys(user for user, *_ in ratings()))
    right = []
    for row in topk_of(job[1]):
        if row["source"] == "personalised":
            scores = {each["item_id"]: each["score"] for each in row["recommendations"]}
            right.append(
                (scores.get("new 0", -np.inf) > scores.get("new 1", -np.inf)) == (users.index(row["user_id"]) % 2 == 0)
            )
    assert len(right) == 60
    assert np.mean(right) > 0.9


def test_what_is_popular_comes_before_what_nobody_has_rated(job: tuple[list[str], Path]) -> None:
    (newcomer,) = (row for row in topk_of(job[1]) if row["source"] == "popular")
    items = [each["item_id"] for each in newcomer["recommendations"]]
    assert len(items) == 42
    assert set(items[:40]) == {item for _, item, *_ in ratings()}


def test_a_second_run_finds_all_done_and_warns_again(job: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(run.main, job[0]) == OK
    error = capsys.readouterr().err
    assert error.count("done before") == 8
    assert "the feature language left out: every rated item has the same value" in error


def test_the_flags_say_what_the_config_says(job: tuple[list[str], Path]) -> None:
    declared = (
        '{shelf: {kind: categories, separator: "+"}, year: {kind: number, missing: [unknown], buckets: 4}, '
        "name: {kind: text, buckets: 131071}, language: category}"
    )
    flags = [*(flag for flag in job[0] if not flag.startswith("--config")), "--recommend_seen"]
    settings = parse_command([*flags, f"--features={declared}"], "")[0]
    assert settings == parse_command(job[0], "")[0]
    assert settings.training.item_tower == "id+features"


def test_a_tower_by_id_does_not_read_the_catalogue(job: tuple[list[str], Path]) -> None:
    settings = parse_command([*job[0], "--item_tower=id"], "")[0]
    done = finished.finished_before("train", Job(settings)).published
    stage = train.plan(Chain(settings, done))
    assert isinstance(stage, Stage)
    assert list(stage.reads["ingest"]) == ["interactions/train"]
    without = replace(settings, training=replace(settings.training, features=()))
    again = train.plan(Chain(without, done))
    assert isinstance(again, Stage)
    assert again.fingerprint == stage.fingerprint


def test_a_sweep_tries_item_towers(job: tuple[list[str], Path], tmp_path: Path) -> None:
    trials = tmp_path / "trials.yaml"
    trials.write_text("[{item_tower: id}, {item_tower: id+features}, {item_tower: id+features, id_dropout: 0.5}]")
    flags = [flag for flag in job[0] if not flag.startswith(("--k", "--num_shards"))]
    assert run_command(sweep.main, [*flags, "--epochs=2", f"--trials={trials}"]) == OK
    (swept,) = Workspace(str(job[1])).finished("sweep")
    (rows,) = (_rows(path) for path in swept.paths(str(job[1]), "trials"))
    assert {(row["setting_item_tower"], row["setting_id_dropout"], row["status"]) for row in rows} == {
        ("id", 0.2, "done"),
        ("id+features", 0.2, "done"),
        ("id+features", 0.5, "done"),
    }
    assert len({row["quality"] for row in rows}) == 3
    (config,) = Path(job[1], swept.folder).glob("winner.yaml")
    chosen = parse_command(["--output=x", f"--config={config}"], "")[0].training
    best = next(row for row in rows if row["trial"] == swept.metrics["winner"])
    assert chosen.item_tower == best["setting_item_tower"]
    by_title = [replace(each, column="title") if each.column == "name" else each for each in parsed_features(job[0])]
    assert list(chosen.features) == (by_title if chosen.item_tower == "id+features" else [])


def parsed_features(flags: list[str]) -> tuple[Feature, ...]:
    return parse_command(flags, "")[0].training.features


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["--features=shelves=categories"],
            "the items have no column 'shelves' for a feature, they have name, shelf, year, language: did you mean shelf?",
        ),
        (["--features=shelf=tag"], "the kind of feature 'shelf' must be one of category, categories, number, text, got 'tag'"),
        (
            ["--features=year=number"],
            "the feature 'year' must be finite numbers, got 'unknown' (9 of 44 items): if that means no value, "
            "declare missing: ['unknown'], or else kind: category",
        ),
        (
            ["--features=language=category"],
            "no feature can tell items apart (language is left out: every rated item has the same",
        ),
        (["--features=", "--item_tower=id+features"], "item_tower id+features needs features: declare them, as in --features"),
        (["--item_tower=features"], "item_tower must be one of id, id+features, got 'features': change --item_tower"),
        (["--id_dropout=1"], "id_dropout must be at least 0 and below 1, got 1: change --id_dropout"),
        (["--items="], "--items is empty, and must name a source: give it, or leave --items out"),
    ],
)
def test_mistakes_are_one_line(
    job: tuple[list[str], Path], changes: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (job[1] / "LATEST").read_bytes()
    assert run_command(run.main, with_flags(job[0], *changes)) == MISTAKE
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {message}")
    assert (job[1] / "LATEST").read_bytes() == before


def test_features_need_items(job: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [flag for flag in job[0] if not flag.startswith(("--items=", "--output="))]
    assert run_command(run.main, [*flags, f"--output={tmp_path}/out"]) == MISTAKE
    assert "the feature 'shelf' needs items: give --items, or use --item_tower id" in capsys.readouterr().err
