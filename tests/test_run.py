"""The whole job, as its users run it: the table is right, a second run does nothing, every mistake is one line."""

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import lookup, publish, run
from pipelines.cli.command import FAULT, GATE_FAILED, MISTAKE, OK, run_command
from pipelines.cli.config import parse_command
from pipelines.engine.progress import Progress
from pipelines.engine.stage import Chain, run_stage
from pipelines.job import chains, finished, single_stage
from pipelines.job.prepare import Job
from schemas.blocks import Block
from schemas.storage import exists, join, list_files, open_file, read_json
from schemas.topk import TOPK, VERSION
from schemas.workspace import Workspace
from tests.made_data import ODD_IDS, ratings, write_csv, write_items, write_ratings
from tests.made_table import pairs_of
from transforms.index import build as build_indexes

QUICK = [
    "--dim=8",
    "--l2=0.1",
    "--epochs=2",
    "--batch_size=64",
    "--k=10",
    "--num_shards=3",
    "--num_buckets=2",
    "--seed=7",
    "--min_lift=0",
]
"""Two epochs need not beat popularity, and nothing here is about that gate."""


def run_job(*flags: str) -> int:
    return run_command(run.main, [*QUICK, *flags])


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of sources, and the output of a run on them."""
    folder = tmp_path_factory.mktemp("job")
    sources = [f"--ratings={write_ratings(folder)}", f"--items={write_items(folder)}"]
    assert run_job(*sources, f"--output={folder / 'out'}") == OK
    return folder, folder / "out"


def topk_of(output: str | Path) -> list[dict]:
    latest = read_json(join(str(output), "LATEST"))
    rows = []
    for path in latest["topk"]:
        with open_file(join(str(output), path)) as file:
            rows += pq.read_table(file).to_pylist()
    return rows


def test_every_user_has_exactly_k_items_none_of_them_seen(job: tuple[Path, Path]) -> None:
    done = finished.finished_before("publish", Job(parse_command([f"--output={job[1]}"], "")[0])).published
    held_out = set()
    for path in done["ingest"].paths(str(job[1]), "interactions/holdout"):
        held_out |= {(row["user_id"], row["item_id"]) for row in pq.read_table(path).to_pylist()}
    rated = {(user, item) for user, item, *_ in ratings()}
    rows = topk_of(job[1])
    assert sorted(row["user_id"] for row in rows) == sorted({user for user, _ in rated})
    for row in rows:
        items = [each["item_id"] for each in row["recommendations"]]
        scores = [each["score"] for each in row["recommendations"]]
        seen = {item for user, item in rated - held_out if user == row["user_id"]}
        assert len(items) == len(set(items)) == 10
        assert not seen & set(items)
        assert "unrated" not in items
        assert scores == sorted(scores, reverse=True)
        assert row["source"] == "personalised"
        assert row["history_length"] == len(seen)


def test_the_files_carry_the_contract(job: tuple[Path, Path]) -> None:
    latest = json.loads((job[1] / "LATEST").read_text())
    release = json.loads((job[1] / latest["manifest"]).read_text())
    for path in latest["topk"]:
        schema = pq.read_schema(job[1] / path)
        assert schema.equals(TOPK)
        assert schema.metadata == TOPK.metadata
    newest = datetime.fromtimestamp(max(time for *_, time in ratings()), UTC)
    assert {row["scored_at"] for row in topk_of(job[1])} == {newest}
    assert release["table"] == {
        "schema_version": VERSION,
        "layout": "nested",
        "k": 10,
        "num_buckets": 2,
        "scored_at": newest.isoformat(),
    }


def test_files_are_hash_buckets_sorted_by_user(job: tuple[Path, Path]) -> None:
    latest = json.loads((job[1] / "LATEST").read_text())
    assert len(latest["topk"]) == 2
    for path in latest["topk"]:
        users = pq.read_table(job[1] / path)["user_id"].to_pylist()
        assert users == sorted(users, key=str.encode)


def test_a_second_run_finds_all_done(job: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = job
    files = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    assert run_job(f"--ratings={folder}/ratings.csv", f"--items={folder}/items.csv", f"--output={output}") == OK
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == files
    captured = capsys.readouterr()
    assert captured.err.count("done before") == 8
    assert "already published" in captured.out


def test_results_name_metrics_users_and_how_to_read_the_table(
    job: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = job
    assert run_job(f"--ratings={folder}/ratings.csv", f"--items={folder}/items.csv", f"--output={output}") == OK
    out = capsys.readouterr().out
    for word in ("recall@10", "ndcg@10", "mrr", "coverage@10", "popularity", "Title of", "60 users"):
        assert word in out
    (line,) = [line for line in out.splitlines() if line.startswith("DuckDB")]
    read = line.removeprefix("DuckDB").replace(".show()", f".project('user_id').write_parquet('{folder}/users.parquet')")
    files = [output / path for path in json.loads((output / "LATEST").read_text())["topk"]]
    stray = files[0].with_name("part-000000_000001.parquet")
    stray.write_bytes(files[0].read_bytes())  # A file that no manifest names is not read.
    try:
        shown = subprocess.run(["bash", "-c", line.removeprefix("DuckDB")], capture_output=True, text=True, check=True)
        subprocess.run(["bash", "-c", read], capture_output=True, text=True, check=True)
    finally:
        stray.unlink()
    assert "personalised" in shown.stdout
    assert sorted(pl.read_parquet(folder / "users.parquet")["user_id"]) == sorted(pl.read_parquet(files)["user_id"])


def test_the_release_and_the_pointer_say_what_was_published(job: tuple[Path, Path]) -> None:
    latest = json.loads((job[1] / "LATEST").read_text())
    release = json.loads((job[1] / latest["manifest"]).read_text())
    assert set(latest) == {"schema_version", "release", "manifest", "topk"}
    assert [file["path"] for file in release["topk"]] == latest["topk"]
    assert release["rows"] == 60
    assert list(release["stages"]) == ["ingest", "lists", "train", "embed", "index", "calibrate", "recommend", "judge"]
    assert release["metrics"]["recall_against_exact"]["mean"] == 1.0
    assert release["metrics"]["users"] == 60


def test_a_long_table_holds_the_same_and_passes_the_same_gates(
    job: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = job
    shutil.copytree(output, tmp_path / "out")
    sources = [f"--ratings={folder}/ratings.csv", f"--items={folder}/items.csv"]
    assert run_job(*sources, f"--output={tmp_path}/out", "--layout=long", "--as_of=2026-11-24") == OK
    captured = capsys.readouterr()
    assert captured.err.count("done before") == 6
    assert "Title of" in captured.out
    rows = topk_of(tmp_path / "out")
    assert {row["scored_at"] for row in rows} == {datetime(2026, 11, 24, tzinfo=UTC)}
    assert sorted((row["user_id"], row["rank"], row["item_id"], row["score"]) for row in rows) == pairs_of(topk_of(output))
    latest = json.loads((tmp_path / "out" / "LATEST").read_text())
    release = json.loads((tmp_path / "out" / latest["manifest"]).read_text())
    assert release["table"]["layout"] == "long"
    assert {gate["status"] for gate in release["gates"].values()} == {"passed"}
    assert release["stages"]["judge"]["metrics"]["table"]["overlap"] == {
        "k": 10,
        "users_in_both": 60,
        "users_changed": 0,
        "mean_jaccard": 1.0,
    }
    shown = []
    for root in (output, tmp_path / "out"):
        assert run_command(lookup.main, [f"--output={root}", "--user=007"]) == OK
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]


def test_lookup_shows_one_user(job: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for user in ("u3", "007", "7", "emoji 🙂", 'quo"te', "<script>alert(1)</script>"):
        assert run_command(lookup.main, [f"--output={job[1]}", f"--user={user}", "--top=3"]) == OK
        out = capsys.readouterr().out
        assert "Title of" in out
    assert run_command(lookup.main, [f"--output={job[1]}", "--user=nobody"]) == MISTAKE
    assert "user 'nobody' is not in release" in capsys.readouterr().err


@pytest.mark.slow
def test_stages_run_one_by_one_like_the_whole(job: tuple[Path, Path], tmp_path: Path) -> None:
    folder, output = job
    flags = [*QUICK, f"--output={tmp_path}"]
    sources = [f"--ratings={folder}/ratings.csv", f"--items={folder}/items.csv"]
    assert run_command(single_stage.stage_command("ingest"), [*flags, *sources]) == OK
    for name in ("lists", "train", "embed", "index", "calibrate"):
        assert run_command(single_stage.stage_command(name), flags) == OK
    # With the sources, a stage finds exactly what those flags made.
    assert run_command(single_stage.stage_command("recommend"), [*flags, *sources]) == OK
    assert run_command(single_stage.stage_command("judge"), flags) == OK
    assert run_command(publish.main, flags) == OK
    assert topk_of(tmp_path) == topk_of(output)


def test_a_stage_whose_input_is_not_done_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ratings_path = write_ratings(tmp_path)
    assert run_command(single_stage.stage_command("index"), [f"--output={tmp_path}/out"]) == MISTAKE
    assert "index needs embed, which is not done" in capsys.readouterr().err
    assert (
        run_command(single_stage.stage_command("train"), [f"--output={tmp_path}/out", f"--ratings={ratings_path}"]) == MISTAKE
    )
    assert "train needs ingest, which is not done for these settings" in capsys.readouterr().err
    assert run_command(single_stage.stage_command("ingest"), [f"--output={tmp_path}/out"]) == MISTAKE
    assert "no ratings: give --ratings" in capsys.readouterr().err


@pytest.mark.slow
def test_everything_goes_through_beams_file_systems(
    job: tuple[Path, Path], memory_root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = job
    assert run_job(f"--ratings={folder}/ratings.csv", f"--items={folder}/items.csv", f"--output={memory_root}") == OK
    assert topk_of(memory_root) == topk_of(output)
    capsys.readouterr()
    assert run_command(lookup.main, [f"--output={memory_root}", "--user=u3"]) == OK
    assert "personalised" in capsys.readouterr().out
    assert not [file for file in list_files(join(memory_root, "**")) if file.path.endswith(".tmp")]


@pytest.mark.slow
@pytest.mark.parametrize("split", ["last", "temporal", "none"])
def test_every_split_ends_in_a_whole_table(tmp_path: Path, split: str) -> None:
    assert run_job(f"--ratings={write_ratings(tmp_path)}", f"--output={tmp_path}/out", f"--split={split}") == OK
    rows = topk_of(tmp_path / "out")
    assert len(rows) == 60
    assert {len(row["recommendations"]) for row in rows} == {10}


def test_ratings_alone_without_ratings_or_times_are_enough(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv.gz"
    lines = ["user_id\titem_id", *(f"{user}\t{item}" for user, item, *_ in ratings() if "\n" not in user + item)]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert run_job(f"--ratings={path}", f"--output={tmp_path}/out") == OK
    assert len(topk_of(tmp_path / "out")) == 59


def test_low_ratings_are_seen_but_no_positives(tmp_path: Path) -> None:
    assert run_job(f"--ratings={write_ratings(tmp_path)}", f"--output={tmp_path}/out", "--min_rating=3", "--split=none") == OK
    rated = {(user, item): rating for user, item, rating, _ in ratings()}
    for row in topk_of(tmp_path / "out"):
        mine = {item: rating for (user, item), rating in rated.items() if user == row["user_id"]}
        assert row["history_length"] == sum(rating >= 3 for rating in mine.values())
        assert not mine.keys() & {each["item_id"] for each in row["recommendations"]}


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["fused", "by_shard"])
def test_users_exclusions_and_item_lists_are_obeyed_before_k_is_counted(tmp_path: Path, plan: str) -> None:
    rows = ratings()
    blocked, pairs = ["i1", "i2", "007"], [("u1", "i5"), ("u1", "emoji 🙂"), ("newcomer", "i7")]
    assert (
        run_job(
            f"--ratings={write_ratings(tmp_path)}",
            f"--output={tmp_path}/out",
            f"--users={write_csv(tmp_path / 'users.csv', ['user_id'], [('newcomer',), ('u1',)])}",
            f"--exclude={write_csv(tmp_path / 'pairs.csv', ['user_id', 'item_id'], pairs)}",
            f"--block_items={write_csv(tmp_path / 'block.csv', ['item_id'], [(each,) for each in blocked])}",
            f"--plan={plan}",
            "--split=none",
            "--k=40",
        )
        == OK
    )
    table = {row["user_id"]: row for row in topk_of(tmp_path / "out")}
    catalogue = {item for _, item, *_ in rows}
    assert table.keys() == {user for user, *_ in rows} | {"newcomer"}
    for user, row in table.items():
        unwanted = {item for other, item, *_ in rows if other == user} | {item for other, item in pairs if other == user}
        assert {each["item_id"] for each in row["recommendations"]} == catalogue - unwanted - set(blocked)
    newcomer = table["newcomer"]
    assert newcomer["source"] == "popular"
    assert newcomer["history_length"] == 0
    latest = max(time for *_, time in rows)
    recent = {item: sum(0.5 ** ((latest - t) / 604_800) for _, i, _, t in rows if i == item) for item in catalogue}
    for each in newcomer["recommendations"]:
        assert each["score"] == pytest.approx(recent[each["item_id"]], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("user_tower", ["id", "history", "id+history"])
def test_users_who_came_after_training_get_lists_of_their_own_by_what_they_rated(tmp_path: Path, user_tower: str) -> None:
    """Towers of yesterday serve the users of today; one with a vector for each id can only give newcomers what is popular."""
    output = f"--output={tmp_path}/out"
    learn = [f"--user_tower={user_tower}", "--epochs=20", "--learning_rate=0.03", "--split=none", "--k=8", output]
    yesterday = [*QUICK, f"--ratings={write_ratings(tmp_path)}", *learn]
    assert run_command(run.main, yesterday) == OK
    done = finished.finished_before("publish", Job(parse_command(yesterday, "")[0])).published
    # Of the made ratings, each user likes every other item: those with an even or with an odd number.
    items = [*ODD_IDS, *(f"i{i}" for i in range(40 - len(ODD_IDS)))]
    newcomers = {f"new{taste}": items[taste + 10 : 30 : 2] for taste in (0, 1)}
    rows = [*ratings(), *((user, item, 5.0, 1_600_000_000) for user, rated in newcomers.items() for item in rated)]
    path = write_csv(tmp_path / "today.csv", ["user_id", "item_id", "rating", "timestamp"], rows)
    settings, options = parse_command([*QUICK, f"--ratings={path}", *learn], "")
    trained, workspace, progress = done["train"], Workspace(settings.output), Progress()
    today: dict[str, Any] = {}
    for name, definition in chains.STAGES.items():
        stage = definition.plan(Chain(settings, today))
        today[name] = trained if name == "train" else run_stage(stage, workspace, options, progress)
    lists = {
        row["user_id"]: row
        for path in today["recommend"].paths(settings.output, "topk")
        for row in pq.read_table(path).to_pylist()
    }
    assert len(lists) == 62
    for taste in (0, 1):
        row = lists[f"new{taste}"]
        found = [each["item_id"] for each in row["recommendations"]]
        assert len(found) == 8
        assert not set(found) & set(newcomers[f"new{taste}"])
        assert row["source"] == ("popular" if user_tower == "id" else "personalised")
        if user_tower != "id":
            assert sum(items.index(each) % 2 == taste for each in found) >= 7


def test_allowed_items_are_the_only_ones_and_none_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--ratings={write_ratings(tmp_path)}", f"--output={tmp_path}/out", "--split=none"]
    flags += ["--max_empty_lists=1", "--max_short_lists=1"]
    allow = write_csv(tmp_path / "allow.csv", ["item_id"], [("i1",), ("i2",), ("elsewhere",)])
    assert run_job(*flags, f"--allow_items={allow}") == OK
    assert {each["item_id"] for row in topk_of(tmp_path / "out") for each in row["recommendations"]} == {"i1", "i2"}
    write_csv(allow, ["item_id"], [("elsewhere",)])
    capsys.readouterr()
    assert run_job(*flags, f"--allow_items={allow}") == MISTAKE
    assert (
        "the only one of the ids of --allow_items, 'elsewhere', is not in the catalogue, the catalogue has"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_stages_that_do_not_belong_together_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--ratings={write_ratings(tmp_path)}", f"--output={tmp_path}/out"]
    assert run_job(*flags) == OK
    (path,) = (tmp_path / "out" / "stages").glob("embed-*/manifest.json")
    manifest = json.loads(path.read_text())
    manifest["outputs"]["contents"]["embeddings"] = "0" * 16
    path.write_text(json.dumps(manifest))
    assert run_command(single_stage.stage_command("recommend"), [*QUICK, f"--output={tmp_path}/out"]) == MISTAKE
    assert "was made from another embed than there is now: run python -m pipelines." in capsys.readouterr().err


def test_a_table_that_is_not_what_the_embeddings_say_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--ratings={write_ratings(tmp_path)}", f"--output={tmp_path}/out"]
    # Ids and vectors out of step by one item, as an index might come to be.
    build = build_indexes.build_shard

    def shifted(blocks: Iterable[Block], *rest: Any) -> int:
        def shift(block: Block) -> Block:
            ids = block["item_id"]
            return block.set_column(0, block.schema.field(0), pa.concat_arrays([ids.slice(1), ids.slice(0, 1)]))

        return build([shift(block) for block in blocks], *rest)

    monkeypatch.setattr(build_indexes, "build_shard", shifted)
    assert run_job(*flags) == FAULT
    assert "the table is wrong: for user" in capsys.readouterr().err
    assert not (tmp_path / "out" / "LATEST").exists()


@pytest.mark.slow
def test_k_and_shards_beyond_the_catalogue_are_cut_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_ratings(tmp_path)
    assert run_job(f"--ratings={path}", f"--output={tmp_path}/out", "--k=5000", "--num_shards=900", "--split=none") == OK
    err = capsys.readouterr().err
    assert "k 5000 is above the number of candidates: using 40" in err
    assert "num_shards 900 is above the number of candidates: using 40" in err
    for row in topk_of(tmp_path / "out"):
        assert len(row["recommendations"]) == 40 - row["history_length"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows",
    [
        [("only", f"i{i}", 3.0, i) for i in range(5)],
        [(f"u{i}", "only", 3.0, i) for i in range(5)],
        [("u", "i", 3.0, 1)],
    ],
    ids=["one user", "one item", "one row"],
)
def test_the_smallest_inputs_work(tmp_path: Path, rows: list[tuple]) -> None:
    path = write_csv(tmp_path / "r.csv", ["user_id", "item_id", "rating", "timestamp"], rows)
    # Nobody has an item left that is new: such a table is made, but only published by whoever says that it is meant.
    flags = (f"--ratings={path}", f"--output={tmp_path}/out", "--split=none")
    assert run_job(*flags) == GATE_FAILED
    assert not (tmp_path / "out" / "LATEST").exists()
    assert run_job(*flags, "--min_coverage=0", "--max_empty_lists=1", "--max_short_lists=1") == OK
    assert [row["recommendations"] for row in topk_of(tmp_path / "out")] == [[]] * len({row[0] for row in rows})


def test_odd_ids_survive_the_whole_way(job: tuple[Path, Path], tmp_path: Path) -> None:
    folder, output = job
    shutil.copytree(output, tmp_path / "out")
    # As long as that, lists hold all that their users have not seen.
    sources = [f"--ratings={folder / 'ratings.csv'}", f"--items={folder / 'items.csv'}"]
    assert run_job(*sources, f"--output={tmp_path / 'out'}", "--k=40") == OK
    rows = topk_of(tmp_path / "out")
    assert set(ODD_IDS) <= {row["user_id"] for row in rows}
    assert set(ODD_IDS) <= {each["item_id"] for row in rows for each in row["recommendations"]}


def bad_inputs(folder: Path) -> dict[str, tuple[list[str], str]]:
    """Flags and the words of the message, by name."""
    good = write_ratings(folder)
    header = ["user_id", "item_id", "rating", "timestamp"]
    parquet = folder / "bad.parquet"
    parquet.write_bytes(b"PAR1 and then nothing of the kind")
    (folder / "empty.csv").write_bytes(b"")
    unwritable = folder / "file"
    unwritable.write_text("in the way")
    return {
        "missing file": ([f"--ratings={folder}/none.csv"], "none.csv"),
        "empty file": ([f"--ratings={folder}/empty.csv"], "is empty"),
        "missing column": ([f"--ratings={good}", "--columns=user_id=uid"], "no column 'uid'"),
        "doubly mapped": ([f"--ratings={good}", "--columns=user_id=item_id,item_id=item_id"], "item_id"),
        "no times": (
            [f"--ratings={write_csv(folder / 'n.csv', header[:3], [('u', 'i', 1)])}", "--split=last"],
            "--split last needs times",
        ),
        "no ratings column": (
            [f"--ratings={write_csv(folder / 'm.csv', header[:2], [('u', 'i')])}", "--min_rating=3"],
            "--min_rating 3 needs ratings",
        ),
        "no such file system": (["--ratings=zz://x/y.csv"], "cannot read 'zz://x/y.csv'"),
        "no dataset": (["--ratings=tfds:"], "names no dataset"),
        "all held out": (
            [
                f"--ratings={write_csv(folder / 'same.csv', header, [(f'u{i}', 'i', 1, 5) for i in range(9)])}",
                "--split=temporal",
            ],
            "there is nothing to train on: 9 positives are held out by --split temporal --holdout 0.1",
        ),
        "one time": (
            [
                f"--ratings={write_csv(folder / 'once.csv', header, [(f'u{i}', f'i{i % 3}', 1, 5) for i in range(9)])}",
                "--split=temporal",
            ],
            "since 90% of the ratings or more have one and the same time, the earliest: check that the timestamp column has",
        ),
        "one time, and none below --min_rating": (
            [f"--ratings={folder / 'once.csv'}", "--split=temporal", "--min_rating=1"],
            "since 90% of the ratings or more have one and the same time, the earliest: check that the timestamp column has",
        ),
        "one time, and some below --min_rating": (
            [
                f"--ratings={write_csv(folder / 'two.csv', header, [(f'u{i}', f'i{i % 3}', i % 2, 5) for i in range(9)])}",
                "--split=temporal",
                "--min_rating=1",
            ],
            "5 ratings are below --min_rating, 4 positives are held out by --split temporal --holdout 0.1: lower --min_rating, "
            "or, if most ratings have one and the same time, check the timestamp column (--columns timestamp=NAME), or",
        ),
        "unknown dataset": (["--ratings=tfds:movielenz/100k-ratings"], "did you mean movielens"),
        "k of 0": ([f"--ratings={good}", "--k=0"], "k must be at least 1, got 0"),
        "all rejected": (
            [f"--ratings={write_csv(folder / 'rejected.csv', header, [('', 'i', 1, 1)] * 3)}", "--max_rejected_fraction=1"],
            "user_id is missing",
        ),
        "ratings of text": (
            [f"--ratings={write_csv(folder / 'text.csv', header, [('u', 'i', 'good', 1)] * 9)}"],
            "rating is not a number",
        ),
        "milliseconds": (
            [f"--ratings={write_csv(folder / 'ms.csv', header, [('u', 'i', 1, 1_500_000_000_000)] * 9)}"],
            "--timestamp_unit ms",
        ),
        "corrupt Parquet": ([f"--ratings={parquet}"], "is damaged, or not Parquet"),
        "output in the way": ([f"--ratings={good}", f"--output={unwritable}/out"], "cannot be written"),
        "min_rating above all": (
            [f"--ratings={good}", "--min_rating=99"],
            "ratings are below --min_rating, 0 positives are held out by --split random --holdout 0.2: lower --min_rating",
        ),
        "output like a pattern": ([f"--ratings={good}", f"--output={folder}/out*"], "means a pattern in a path"),
        "unknown flag": ([f"--ratings={good}", "--num_shard=2"], "did you mean --num_shards"),
    }


def test_every_mistake_is_one_line_and_leaves_the_release_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert run_job(f"--ratings={write_ratings(tmp_path)}", f"--output={output}") == OK
    before = (output / "LATEST").read_bytes()
    capsys.readouterr()
    for name, (flags, words) in bad_inputs(tmp_path).items():
        assert run_job(f"--output={output}", *flags) == MISTAKE, name
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert words in line, name
        assert "Traceback" not in line, name
        assert (output / "LATEST").read_bytes() == before, name


@pytest.mark.slow
def test_a_damaged_table_is_not_published_over_a_good_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--ratings={write_ratings(tmp_path)}", f"--output={tmp_path}/out"]
    assert run_job(*flags, "--k=5") == OK
    damaged = tmp_path / "out" / json.loads((tmp_path / "out" / "LATEST").read_text())["topk"][0]
    assert run_job(*flags, "--k=4") == OK
    before = (tmp_path / "out" / "LATEST").read_bytes()
    data = damaged.read_bytes()
    for contents in (data[:100], data[:-100] + bytes(100)):
        damaged.write_bytes(contents)
        capsys.readouterr()
        assert run_job(*flags, "--k=5") == MISTAKE
        assert "run the same command again" in capsys.readouterr().err
        assert (tmp_path / "out" / "LATEST").read_bytes() == before


def test_the_printed_lines_work_for_an_output_with_an_odd_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / """it's a "q" $HOME"""
    assert run_job(f"--ratings={write_ratings(tmp_path)}", f"--output={output}/") == OK
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if line.startswith(("DuckDB", "look up")))
    for name, line in lines.items():
        shown = subprocess.run(["bash", "-c", line.replace("USER", "u3")], capture_output=True, text=True, check=True)
        assert "personalised" in shown.stdout, name
    assert len(lines) == 2


def test_rejected_rows_are_kept_with_reason_source_and_values(tmp_path: Path) -> None:
    rows = [*ratings(), ("", "i1", 3.0, 1), ("u1", "i1", "bad", 1)]
    path = write_csv(tmp_path / "r.csv", ["user_id", "item_id", "rating", "timestamp"], rows)
    assert run_job(f"--ratings={path}", f"--output={tmp_path}/out") == OK
    (manifest,) = Workspace(str(tmp_path / "out")).finished("ingest")
    kept = [row for each in manifest.paths(str(tmp_path / "out"), "rejected") for row in pq.read_table(each).to_pylist()]
    assert [(row["reason"], row["source"], row["user_id"], row["item_id"], row["rating"]) for row in kept] == [
        ("user_id is missing", str(path), None, "i1", "3.0"),
        ("rating is not a number", str(path), "u1", "i1", "bad"),
    ]


def test_the_command_line_works_as_a_process_of_its_own(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "pipelines.run", "--output", str(tmp_path / "out"), "--ratings", str(tmp_path / "none.csv")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == MISTAKE
    assert made.stdout == ""
    assert made.stderr.startswith("error: cannot read")
    assert made.stderr.count("\n") == 1
    assert not exists(str(tmp_path / "out" / "LATEST"))
