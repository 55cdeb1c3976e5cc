"""Who is to be forgotten leaves no trace in what is read, whatever the file; nobody slips through because a list is damaged."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from pipelines.cli.command import MISTAKE, OK, run_command
from pipelines.job import single_stage
from pipelines.job.refit import check_same_sources
from pipelines.lifecycle.forget import names_of
from schemas.errors import InputError
from schemas.forgotten import Forgotten, read_forgotten, write_forgotten
from schemas.manifest import StageManifest
from schemas.rejected import REJECTED
from schemas.storage import join, list_files, read_json, write_file, write_json
from schemas.workspace import Workspace
from tests.made_data import ODD_IDS, ratings, write_csv, write_items
from transforms.ingest.leave_out import TEXT_LEFT_OUT, LeaveOut, Unwanted
from transforms.ingest.validate import RawBlocks

HEADER = ["user_id", "item_id", "rating", "timestamp"]
USERS, ITEMS = ['quo"te', "007", "nobody"], ["emoji 🙂", "7", "nothing"]
ASKED = "2026-11-24T17:00:00.000Z"


def forget(root: str, users: Sequence[str] = (), items: Sequence[str] = ()) -> None:
    workspace = Workspace(root)
    write_forgotten(workspace, read_forgotten(workspace).with_others(users, items, ASKED))


def unwanted(users: Sequence[str] = (), items: Sequence[str] = ()) -> Unwanted:
    return Unwanted(pa.array(users, pa.string()), pa.array(items, pa.string()))


def ingest(output: Path, *flags: str, code: int = OK) -> StageManifest | None:
    """Runs the stage, and returns what finished last."""
    assert run_command(single_stage.stage_command("ingest"), [f"--output={output}", "--num_buckets=2", *flags]) == code
    finished = Workspace(str(output)).finished("ingest")
    return finished[-1] if finished else None


def ingested(output: Path, *flags: str) -> StageManifest:
    done = ingest(output, *flags)
    assert done is not None
    return done


def listed(output: Path, *flags: str) -> StageManifest:
    """Runs ingest and the stage that reads the lists, and returns the latter."""
    ingested(output, *flags)
    assert run_command(single_stage.stage_command("lists"), [f"--output={output}", "--num_buckets=2", *flags]) == OK
    return Workspace(str(output)).finished("lists")[-1]


def test_the_list_survives_with_odd_ids_and_the_first_time_that_was_asked(root: str) -> None:
    workspace = Workspace(root)
    assert read_forgotten(workspace) == Forgotten()
    first = Forgotten().with_others(ODD_IDS, ["7"], "2026-01-01T00:00:00.000Z")
    write_forgotten(workspace, first)
    assert read_forgotten(workspace) == first
    more = first.with_others(["u1", "7"], [], ASKED)
    write_forgotten(workspace, more)
    found = read_forgotten(workspace)
    assert dict(found.users) == dict.fromkeys(ODD_IDS, "2026-01-01T00:00:00.000Z") | {"u1": ASKED}
    assert found.salt == first.salt
    back = found.without([*ODD_IDS, "u1", "never there"], ["7"])
    assert (back.users, back.items, back.digest) == ({}, {}, None)


def test_the_digest_follows_the_ids_alone_and_gives_none_away() -> None:
    one = Forgotten().with_others(["u1", "u2"], ["i1"], ASKED)
    assert one.digest == Forgotten({"u2": "", "u1": ""}, {"i1": ""}, one.salt).digest
    others = [
        one,
        one.with_others(["u3"], [], ASKED),
        one.without(["u2"], []),
        one.without([], ["i1"]),
        Forgotten({"i1": ""}, {"u1": "", "u2": ""}, one.salt),
        Forgotten().with_others(["u1", "u2"], ["i1"], ASKED),  # Of another output: nobody can look the ids up by it.
    ]
    assert len({each.digest for each in others}) == len(others)


def test_a_list_that_cannot_be_understood_never_means_that_nobody_is_forgotten(root: str) -> None:
    workspace = Workspace(root)
    good = {"schema_version": 1, "users": [{"id": "u", "asked_at": ASKED}], "items": [], "salt": "00"}
    damaged: list[Any] = [
        [],
        {},
        good | {"users": {"u": ASKED}},
        good | {"items": None},
        good | {"users": ["u"]},
        good | {"users": [{"id": 7, "asked_at": ASKED}]},
        good | {"users": [{"id": "u"}]},
        good | {"users": [{"id": "", "asked_at": ASKED}]},
        good | {"users": [{"id": "\ud800", "asked_at": ASKED}]},
        good | {"users": [{"id": "u", "asked_at": "tomorrow"}]},
        good | {"salt": None},
        good | {"schema_version": "1"},
    ]
    for value in damaged:
        write_file(root, "forgotten.json", json.dumps(value).encode())
        with pytest.raises(
            InputError, match=r"forgotten.json does not say which users .* restore it from a copy; to delete it"
        ):
            read_forgotten(workspace)
    write_json(workspace.forgotten, good | {"schema_version": 2})
    with pytest.raises(InputError, match="schema version 2, this program knows versions up to 1: use the program that wrote"):
        read_forgotten(workspace)
    write_json(workspace.forgotten, good)
    assert dict(read_forgotten(workspace).users) == {"u": ASKED}


def test_a_run_stops_where_the_list_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_csv(tmp_path / "r.csv", HEADER, ratings())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "forgotten.json").write_text('{"users": ')
    assert ingest(tmp_path / "out", f"--ratings={source}", code=MISTAKE) is None
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "forgotten.json does not say which users and items to leave out" in error


@pytest.mark.parametrize(
    "dtype", [pa.string(), pa.large_string(), pa.int64(), pa.int16(), pa.float64(), pa.dictionary(pa.int32(), pa.string())]
)
def test_rows_are_known_by_the_text_of_their_ids_whatever_the_type(dtype: pa.DataType) -> None:
    rng = np.random.default_rng(1)
    users, items = rng.integers(0, 30, 500), rng.integers(0, 30, 500)
    texts = [pa.array([str(each) for each in ids.tolist()]) for ids in (users, items)]
    columns = [each.dictionary_encode() if pa.types.is_dictionary(dtype) else each.cast(dtype) for each in texts]
    block = pa.RecordBatch.from_arrays(columns, names=["user_id", "item_id"])
    named = unwanted(["3", "007"], ["4", "11"]).names(block)
    expected = [user == 3 or item in (4, 11) for user, item in zip(users.tolist(), items.tolist(), strict=True)]
    assert named.tolist() == expected


def test_missing_ids_are_nobodys() -> None:
    block = pa.RecordBatch.from_pydict(
        {"user_id": pa.array([None, "u", "", "nan"]), "item_id": pa.array([1.0, None, 2.0, float("nan")])}
    )
    assert unwanted(["u"], ["2", "None"]).names(block).tolist() == [False, True, True, False]
    assert unwanted().names(block).tolist() == [False] * 4


def test_an_id_in_the_text_of_a_bad_line_goes_where_it_stands_alone() -> None:
    texts = {
        "u1,7,5,3": True,
        "u1,17,5,70": False,
        "u1;_7;5": False,
        '"quo""te",5': True,
        'quo"te': True,
        'unquo"te,5': False,
        "x\nnew\nline,5": True,
        "new line": False,
        "émoji 🙂 5": False,
        "5\temoji 🙂\t8": True,
        "a.b": True,
        "axb": False,
        "": False,
        "nothing of the kind": False,
    }
    block = pa.RecordBatch.from_pylist(
        [
            {"dataset": "ratings", "reason": "line", "source": "s", "position": at, "text": text}
            for at, text in enumerate([*texts, None])
        ],
        REJECTED,
    )
    found = unwanted(["7", 'quo"te', "new\nline", "---"], ["emoji 🙂", "a.b"]).without_texts(block)
    assert found["text"].to_pylist() == [*(TEXT_LEFT_OUT if named else text for text, named in texts.items()), None]
    assert found.schema.equals(REJECTED)
    assert found.drop_columns(["text"]).equals(block.drop_columns(["text"]))
    assert unwanted(["---"], []).without_texts(block) is block


def test_what_is_left_out_is_counted_in_good_and_in_bad_lines() -> None:
    good = [pa.RecordBatch.from_pydict({"user_id": [f"u{at % 5}"] * 3, "item_id": ["i0", "i1", "i2"]}) for at in range(10)]
    facts = {"dataset": "ratings", "reason": "id is not UTF-8 text", "source": "s", "position": 1}
    bad = pa.RecordBatch.from_pylist(
        [facts | {"user_id": "u1", "item_id": "\ufffd"}, facts | {"user_id": "\ufffd", "item_id": "i3"}], REJECTED
    )
    with TestPipeline("FnApiRunner") as pipeline:
        raw = RawBlocks(pipeline | "Good" >> beam.Create(good), pipeline | "Bad" >> beam.Create([bad]))
        left = raw | "LeaveOut" >> LeaveOut(unwanted(["u1"], ["i0"]))
        pairs = left.raw.blocks | "Pairs" >> beam.FlatMap(
            lambda block: zip(*(block[name].to_pylist() for name in block.schema.names), strict=True)
        )
        expected = [(f"u{at % 5}", item) for at in range(10) for item in ("i1", "i2") if at % 5 != 1]
        assert_that(pairs, equal_to(expected), "Pairs left")
        assert_that(
            left.raw.malformed | "Items" >> beam.FlatMap(lambda block: block["item_id"].to_pylist()),
            equal_to(["i3"]),
            "Bad left",
        )
        assert_that(left.left_out, equal_to([30 - len(expected) + 1]), "Count")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every kind of source, some of their rows bad; and in `less` the same without those to be forgotten."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "less").mkdir()
    bad: list[tuple] = [("007", "i1", "x", 1), ("u1", "7", "x", 1), ("u2", "i2", "x", 1), ("", "emoji 🙂", 1, 1)]
    rows: Mapping[str, tuple[list[str], list[tuple]]] = {
        "ratings": (HEADER, [*ratings(), *bad]),
        "users": (["user_id"], [("007",), ("new here",), ("nobody",)]),
        "exclude": (["user_id", "item_id"], [("007", "i3"), ("u3", "7"), ("u3", "i3")]),
    }
    for name, (header, lines) in rows.items():
        write_csv(folder / f"{name}.csv", header, lines)
        at_user, at_item = header.index("user_id"), header.index("item_id") if "item_id" in header else None
        kept = [row for row in lines if row[at_user] not in USERS and (at_item is None or row[at_item] not in ITEMS)]
        write_csv(folder / "less" / f"{name}.csv", header, kept)
    items = write_items(folder)
    with items.open("a", encoding="utf-8") as file:
        file.write("\nnothing,Of a forgotten item,a\n")
    written = items.read_text(encoding="utf-8").split("\n")
    kept_lines = [line for line in written if not line.startswith(tuple(f"{each}," for each in ITEMS))]
    (folder / "less" / "items.csv").write_text("\n".join(kept_lines), encoding="utf-8")
    return folder


def flags_of(folder: Path, *more: str) -> list[str]:
    named = [f"--{name}={folder}/{name}.csv" for name in ("ratings", "items", "users", "exclude")]
    return [*named, "--max_rejected_fraction=0.1", *more]


@pytest.mark.slow
@pytest.mark.parametrize("split", ["random", "temporal"])
def test_forgotten_rows_leave_what_a_source_without_them_would(sources: Path, tmp_path: Path, split: str) -> None:
    forget(str(tmp_path / "out"), USERS, ITEMS)
    done = ingested(tmp_path / "out", *flags_of(sources, f"--split={split}"))
    expected = ingested(tmp_path / "less", *flags_of(sources / "less", f"--split={split}"))
    for dataset in ("users", "interactions/train", "interactions/holdout", "items"):
        assert done.rows(dataset)
        assert done.digest_of_datasets([dataset]) == expected.digest_of_datasets([dataset])
    reasons = [
        [row["reason"] for path in each.paths(str(root), "rejected") for row in pq.read_table(path).to_pylist()]
        for each, root in ((done, tmp_path / "out"), (expected, tmp_path / "less"))
    ]
    assert sorted(reasons[0]) == sorted(reasons[1]) == ["rating is not a number"]
    metrics = {name: value for name, value in done.metrics.items() if not name.endswith("_forgotten")}
    summaries = [
        {name: value["rows"] for name, value in each.items() if name.endswith("_read")} for each in (metrics, expected.metrics)
    ]
    assert summaries[0] == summaries[1]
    lists, expected_lists = (
        listed(tmp_path / out, *flags_of(folder, f"--split={split}"))
        for out, folder in (("out", sources), ("less", sources / "less"))
    )
    assert lists.rows("users") == done.rows("users") + 1
    assert lists.digest == expected_lists.digest
    assert lists.metrics["ids_joined"] == expected_lists.metrics["ids_joined"]
    gone = sum(user in USERS or item in ITEMS for user, item, *_ in ratings()) + 3
    assert {name: value for name, value in done.metrics.items() if name not in metrics} == {
        "ratings_forgotten": gone,
        "items_forgotten": 3,
    }
    assert {name: value for name, value in lists.metrics.items() if name.endswith("_forgotten")} == {
        "served_users_forgotten": 2,
        "exclusions_forgotten": 2,
    }


def test_no_file_names_who_was_forgotten(sources: Path, tmp_path: Path) -> None:
    rows = [("u-1-gone", f"i{at}", 5, 1_500_000_000 + at) for at in range(9)] + [
        (f"u{at}", "i-gone", 5, 1_500_000_000) for at in range(9)
    ]
    source = write_csv(tmp_path / "r.csv", HEADER, [*ratings(), *rows])
    with source.open("a", encoding="utf-8") as appended:
        appended.write("u-1-gone,i1\nu1,i-gone,5,1500000000,more\nu1,i1,5,1500000000,more\ni3,u-1-gone-not,5,1,2\n")
    out = tmp_path / "out"
    forget(str(out), ["u-1-gone"], ["i-gone"])
    done = ingested(out, f"--ratings={source}", "--max_rejected_fraction=0.02")
    texts = [row["text"] for path in done.paths(str(out), "rejected") for row in pq.read_table(path).to_pylist()]
    assert sorted(texts) == sorted([TEXT_LEFT_OUT] * 3 + ["u1,i1,5,1500000000,more"])
    assert done.metrics["ratings_read"]["reasons"]["line has the wrong number of columns"]["count"] == 4
    scanned = 0
    for file in list_files(join(str(out), "stages", "**")):
        content = Path(file.path).read_bytes()
        if file.path.endswith(".parquet"):
            content = json.dumps(pq.read_table(file.path).to_pylist(), default=str, ensure_ascii=False).encode()
        assert not [each for each in (b"u-1-gone", b"i-gone") if each in content], file.path
        scanned += 1
    assert scanned > 6


def test_the_stage_runs_again_for_another_list_and_not_for_an_empty_one(sources: Path, tmp_path: Path) -> None:
    flags = [f"--ratings={sources}/ratings.csv", "--max_rejected_fraction=0.1", "--split=none"]
    first = ingested(tmp_path, *flags)
    forget(str(tmp_path), ["nobody at all"])
    second = ingested(tmp_path, *flags)
    assert second.fingerprint != first.fingerprint
    assert second.digest == first.digest
    assert "nobody at all" not in json.dumps(
        read_json(join(str(tmp_path), "stages", f"ingest-{second.fingerprint}", "manifest.json"))
    )
    forgotten = read_forgotten(Workspace(str(tmp_path)))
    write_forgotten(Workspace(str(tmp_path)), forgotten.without(["nobody at all"], []))
    ingested(tmp_path, *flags)
    assert len(Workspace(str(tmp_path)).finished("ingest")) == 2


def test_a_list_of_nobody_else_is_no_error_and_ratings_of_nobody_else_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_csv(tmp_path / "r.csv", HEADER, [("a", "x", 1, 1), ("a", "y", 1, 1), ("b", "x", 1, 1)])
    served = write_csv(tmp_path / "u.csv", ["user_id"], [("a",)])
    flags = [f"--ratings={source}", f"--users={served}", "--split=none"]
    forget(str(tmp_path / "out"), ["a"])
    done = listed(tmp_path / "out", *flags)
    assert (done.rows("users"), done.metrics["served_users_forgotten"]) == (1, 1)
    forget(str(tmp_path / "out"), items=["x"])
    ingest(tmp_path / "out", *flags, code=MISTAKE)
    error = capsys.readouterr().err
    assert "nothing to train on: 3 ratings are of users or items that are to be forgotten" in error
    assert "give ratings of others too, or end that with python -m pipelines.releases forget --remember" in error


def test_what_was_read_before_is_not_built_on(sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--ratings={sources}/ratings.csv", "--max_rejected_fraction=0.1"]
    done = ingested(tmp_path, *flags)
    forget(str(tmp_path), ["u1"])
    assert run_command(single_stage.stage_command("train"), [f"--output={tmp_path}"]) == MISTAKE
    assert "the sources were read before it was asked to forget" in capsys.readouterr().err
    assert run_command(single_stage.stage_command("train"), [f"--output={tmp_path}", "--num_buckets=2", *flags]) == MISTAKE
    assert "train needs ingest, which is not done for these settings" in capsys.readouterr().err
    later = ingested(tmp_path, *flags)
    with pytest.raises(InputError, match="who is to be forgotten has changed while the job ran"):
        check_same_sources(done, later)


def test_an_id_as_a_text_file_writes_a_float_is_left_out_as_it_is_read(tmp_path: Path) -> None:
    rows = [(f"{user}.0", f"{item}.0", 3.0, 1) for user in range(4) for item in range(3)]
    source = f"--ratings={write_csv(tmp_path / 'r.csv', HEADER, rows)}"
    output = tmp_path / "out"
    write_json(
        Workspace(str(output)).forgotten,
        {
            "schema_version": 1,
            "users": [{"id": "1.0", "asked_at": ASKED}],
            "items": [{"id": "2.0", "asked_at": ASKED}],
            "salt": "s",
        },
    )
    done = ingested(output, source, "--split=none")
    assert sorted(row["user_id"] for path in done.paths(str(output), "users") for row in pq.read_table(path).to_pylist()) == [
        "0",
        "2",
        "3",
    ]
    assert done.metrics["ratings_forgotten"] == 6
    assert names_of(["1.0", "x"], None, "user") == {"1.0", "1", "x"}
