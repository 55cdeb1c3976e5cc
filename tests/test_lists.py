"""The lists are read once, before training; another list makes as little as possible run again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import run
from pipelines.cli.command import MISTAKE, OK, run_command
from pipelines.job import single_stage
from schemas.manifest import StageManifest, users_of
from schemas.storage import read_json
from schemas.workspace import Workspace
from tests.made_data import ratings, write_csv, write_items, write_ratings
from tests.test_run import QUICK, topk_of

STAGES = ("ingest", "lists", "train", "embed", "index", "calibrate", "recommend", "judge")


def finished(output: Path) -> dict[str, int]:
    """Returns how many times each stage was made."""
    return {name: len(Workspace(str(output)).finished(name)) for name in STAGES}


def listed(output: Path, *flags: str, code: int = OK) -> StageManifest:
    """Runs ingest and lists, and returns what the latter made; nothing is trained."""
    assert run_command(single_stage.stage_command("ingest"), [*QUICK, f"--output={output}", *flags]) == OK
    assert run_command(single_stage.stage_command("lists"), [*QUICK, f"--output={output}", *flags]) == code
    assert finished(output)["train"] == 0
    made = Workspace(str(output)).finished("lists")
    return made[-1] if made else Workspace(str(output)).finished("ingest")[-1]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], dict[str, int]]:
    """A folder of sources and lists, the flags of a run on them, and how often each stage was made."""
    folder = tmp_path_factory.mktemp("lists")
    write_csv(folder / "users.csv", ["user_id"], [("newcomer",), ("u1",)])
    write_csv(folder / "exclude.csv", ["user_id", "item_id"], [("u1", "i5"), ("newcomer", "i7")])
    write_csv(folder / "block.csv", ["item_id"], [("i1",), ("gone",)])
    sources = [f"--ratings={write_ratings(folder)}", f"--items={write_items(folder)}", "--split=none", "--k=40"]
    lists = [f"--users={folder}/users.csv", f"--exclude={folder}/exclude.csv", f"--block_items={folder}/block.csv"]
    flags = [*QUICK, *sources, *lists, f"--output={folder / 'out'}", "--max_shrink=1", "--min_overlap=0"]
    assert run_command(run.main, flags) == OK
    return folder, flags, finished(folder / "out")


def expected(users: set[str], exclude: set[tuple[str, str]], block: set[str]) -> dict[str, set[str]]:
    """What each user gets where k is the whole catalogue: all items with a vector that nothing forbids."""
    rated = {(user, item) for user, item, *_ in ratings()}
    items = {item for _, item in rated}
    everyone = {user for user, _ in rated} | users
    return {user: items - block - {item for other, item in rated | exclude if other == user} for user in everyone}


def table_of(output: Path) -> dict[str, set[str]]:
    return {row["user_id"]: {each["item_id"] for each in row["recommendations"]} for row in topk_of(output)}


@pytest.mark.slow
def test_another_list_runs_neither_ingest_nor_training_nor_the_index_again(
    job: tuple[Path, list[str], dict[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, flags, before = job
    output = folder / "out"
    assert set(before.values()) == {1}
    assert table_of(output) == expected({"newcomer", "u1"}, {("u1", "i5"), ("newcomer", "i7")}, {"i1"})
    write_csv(folder / "users.csv", ["user_id"], [("another",), ("u1",)])
    write_csv(folder / "exclude.csv", ["user_id", "item_id"], [("u1", "i6"), ("another", "i8")])
    write_csv(folder / "block.csv", ["item_id"], [("i2",), ("i3",)])
    assert run_command(run.main, flags) == OK
    assert table_of(output) == expected({"another", "u1"}, {("u1", "i6"), ("another", "i8")}, {"i2", "i3"})
    again = {name for name, count in finished(output).items() if count > before[name]}
    assert again == {"lists", "recommend", "judge"}
    # A list that comes to the same does not even make the table again.
    write_csv(folder / "block.csv", ["item_id"], [("i3",), ("i2",), ("i2",), ("of no catalogue",)])
    assert run_command(run.main, flags) == OK
    assert finished(output) == {**dict.fromkeys(STAGES, 1), "lists": 3, "recommend": 2, "judge": 2}
    # With none, all is as ingest left it; a header alone is the same.
    for name, header in (("users", ["user_id"]), ("exclude", ["user_id", "item_id"]), ("block", ["item_id"])):
        write_csv(folder / f"{name}.csv", header, [])
    assert run_command(run.main, flags) == OK
    assert table_of(output) == expected(set(), set(), set())
    assert finished(output)["train"] == 1
    capsys.readouterr()
    # The stages alone find the lists of the newest ingest, and are sent to read others first.
    alone = [*QUICK, f"--output={output}", "--k=40"]
    assert run_command(single_stage.stage_command("recommend"), [*alone, f"--block_items={folder / 'items.csv'}"]) == MISTAKE
    assert "run python -m pipelines.lists with the same flags" in capsys.readouterr().err
    assert run_command(single_stage.stage_command("recommend"), alone) == OK
    assert run_command(single_stage.stage_command("judge"), alone) == OK


def test_a_missing_list_is_said_before_anything_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--ratings={write_ratings(tmp_path)}", f"--output={tmp_path}/out", f"--block_items={tmp_path}/none.csv"]
    assert run_command(run.main, [*QUICK, *flags]) == MISTAKE
    assert "none.csv': there is no such file: check the path" in capsys.readouterr().err
    assert finished(tmp_path / "out")["ingest"] == 0


@pytest.mark.parametrize(
    ("flag", "header", "rows", "message"),
    [
        (
            "block_items",
            ["item_id"],
            [("001",)],
            "the only one of the ids of --block_items, '001', is not in the catalogue, the catalogue has '1': write the ids",
        ),
        ("block_items", ["item_id"], [("a",), ("b",)], "none of the 2 ids of --block_items is in the catalogue: they are such"),
        (
            "allow_items",
            ["item_id"],
            [(" 2",)],
            "' 2', is not in the catalogue, the catalogue has '2': remove the spaces around the ids",
        ),
        ("allow_items", ["item_id"], [], "names no item, so nothing might be recommended: name those that may be, or leave"),
        (
            "exclude",
            ["user_id", "item_id"],
            [("u1", "x")],
            "the only one of the item ids of --exclude, 'x', is not in the catalogue",
        ),
        (
            "exclude",
            ["user_id", "item_id"],
            [("v1", "1")],
            "the only one of the user ids of --exclude, 'v1', is not in the users, the users have 'u",
        ),
        (
            "users",
            ["user_id"],
            [("U1",)],
            "is not in the ratings, the ratings have 'u1': write the ids in the",
        ),
        ("block_items", ["item_id", "why"], [("1", "a"), ("", "b")], "has a row without an item_id (position"),
        ("block_items", ["item_id", "why"], [("1", "a"), ("2",)], "cannot be read (line has the wrong number of columns): '2'"),
        ("block_items", ["item_id"], [(each,) for each in range(9)], "no item of the catalogue (9 items) may be recommended"),
        ("exclude", ["user_id", "item_id"], [("u1", "1"), ("u2", "")], "1 of 2 rows of the exclusions was rejected: item_id"),
    ],
)
def test_a_list_that_does_not_fit_is_a_mistake_before_training(
    tmp_path: Path, flag: str, header: list[str], rows: list[tuple], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rated = [(f"u{user}", item) for user in range(4) for item in range(9) if (user + item) % 2]
    source = write_csv(tmp_path / "ratings.csv", ["user_id", "item_id"], rated)
    given = write_csv(tmp_path / "list.csv", header, rows)
    listed(tmp_path / "out", f"--ratings={source}", f"--{flag}={given}", code=MISTAKE)
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_ids_of_the_lists_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    users = write_csv(tmp_path / "u.csv", ["user_id"], [("u1",), ("new",), ("new",), ("u2 ",)])
    block = write_csv(tmp_path / "b.csv", ["item_id"], [("i1",), ("x",), ("y",)])
    exclude = write_csv(tmp_path / "e.csv", ["user_id", "item_id"], [("new", "i1"), ("u1", "i2"), ("nobody", "i2")])
    flags = [f"--ratings={write_ratings(tmp_path)}", f"--users={users}", f"--block_items={block}", f"--exclude={exclude}"]
    made = listed(tmp_path / "out", *flags)
    joined = made.metrics["ids_joined"]
    assert {name: (each["ids"], each["known"]) for name, each in joined.items()} == {
        "users": (3, 1),
        "block_items": (3, 1),
        "exclude_users": (3, 2),  # One of them is served without ratings.
        "exclude_items": (2, 2),
    }
    assert joined["users"]["spellings"] == [["u2 ", "u2"]]
    assert made.metrics["items_blocked"] == 1
    assert made.metrics["users_without_ratings"] == 2
    assert made.metrics["exclusions_of_unknown_users"] == 1
    warned = [line for line in capsys.readouterr().err.splitlines() if "warning: " in line]
    assert any("ids of --block_items: in the catalogue, 1 of 3 ids is known (33.3 %)" in each for each in warned)
    assert any("1 of 4 rows of the served users has white space around its user_id, such as 'u2 '" in each for each in warned)


def test_users_who_all_are_new_are_served(tmp_path: Path) -> None:
    users = write_csv(tmp_path / "u.csv", ["user_id"], [("new",), ("newer",)])
    made = listed(tmp_path / "out", f"--ratings={write_ratings(tmp_path)}", f"--users={users}")
    assert made.rows("users") == 62
    assert users_of({"ingest": made, "lists": made}) is made


def test_a_catalogue_that_describes_nothing_that_was_rated_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "r.parquet"
    pq.write_table(pa.table({"user_id": ["a"] * 3 + ["b"] * 3, "item_id": ["0.0", "1.0", "2.0"] * 2}), source)
    items = write_csv(tmp_path / "i.csv", ["item_id", "title"], [(item, f"title {item}") for item in range(3)])
    flags = [*QUICK, f"--output={tmp_path}/out", f"--ratings={source}", "--split=none"]
    assert run_command(run.main, [*flags, f"--items={items}"]) == MISTAKE
    said = capsys.readouterr().err
    assert "none of the 3 item ids of the ratings is in the items: they are such as '" in said
    assert "write whole numbers without .0" in said
    assert finished(tmp_path / "out")["train"] == 0


def ids_in(manifest: StageManifest, output: Path, dataset: str) -> list[Mapping[str, Any]]:
    return [row for path in manifest.paths(str(output), dataset) for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.int32(), pa.dictionary(pa.int32(), pa.float64())])
def test_whole_numbers_give_the_ids_that_a_person_would_write_whatever_the_column(tmp_path: Path, kind: pa.DataType) -> None:
    pairs = [(user, item) for user in range(1, 5) for item in range(10, 18) if (user + item) % 3]
    columns = {name: pa.array([pair[at] for pair in pairs]) for at, name in enumerate(("user_id", "item_id"))}
    values = {
        name: column.cast(kind.value_type).dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
        for name, column in columns.items()
    }
    pq.write_table(pa.table(values), tmp_path / "r.parquet")
    pq.write_table(pa.table({"item_id": values["item_id"][:1]}), tmp_path / "b.parquet")
    write_csv(tmp_path / "r.csv", ["user_id", "item_id"], pairs)
    write_csv(tmp_path / "b.csv", ["item_id"], [pairs[0][1:]])
    made = [
        listed(tmp_path / ending, f"--ratings={tmp_path}/r.{ending}", f"--block_items={tmp_path}/b.{ending}", "--split=none")
        for ending in ("parquet", "csv")
    ]
    assert made[0].digest == made[1].digest
    assert made[0].rows("blocked") == 1
    one, other = (Workspace(str(tmp_path / ending)).finished("ingest")[-1] for ending in ("parquet", "csv"))
    for dataset in ("users", "items", "interactions/train"):
        assert one.digest_of_datasets([dataset]) == other.digest_of_datasets([dataset])


def test_text_that_ends_in_point_zero_stays_as_it_is_and_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {"user_id": ["a"] * 3 + ["b"] * 3, "item_id": ["0.0", "1.0", "2.0"] * 2}
    pq.write_table(pa.table(columns), tmp_path / "r.parquet")
    listed(tmp_path / "out", f"--ratings={tmp_path}/r.parquet", "--split=none")
    ingested = Workspace(str(tmp_path / "out")).finished("ingest")[-1]
    assert [row["item_id"] for row in ids_in(ingested, tmp_path / "out", "items")] == ["0.0", "1.0", "2.0"]
    warned = [line for line in capsys.readouterr().err.splitlines() if "warning: " in line]
    assert any("every item_id of the ratings ends in .0" in each for each in warned)
    assert not any("user_id" in each for each in warned)


def test_whole_numbers_that_became_floats_have_the_same_ids_in_text_as_in_parquet(tmp_path: Path) -> None:
    """As pandas writes integers with gaps, in either format; a list of plain integers names the same items."""
    rated = [(float(user), float(item), 3.5) for user in range(4) for item in range(9) if (user + item) % 2]
    columns = dict(zip(("user_id", "item_id", "rating"), zip(*rated, strict=True), strict=True))
    pandas.DataFrame(columns).to_csv(tmp_path / "r.csv", index=False)
    pandas.DataFrame(columns).to_csv(tmp_path / "r.tsv.gz", index=False, sep="\t")
    pandas.DataFrame(columns).to_parquet(tmp_path / "r.parquet")
    assert "1.0,0.0,3.5" in (tmp_path / "r.csv").read_text()
    blocked = write_csv(tmp_path / "b.csv", ["item_id"], [(0,), (7,)])
    found = {}
    for name in ("r.csv", "r.tsv.gz", "r.parquet"):
        done = listed(tmp_path / name[2:], f"--ratings={tmp_path}/{name}", f"--block_items={blocked}", "--split=none")
        ingested = Workspace(str(tmp_path / name[2:])).finished("ingest")[-1]
        found[name] = (done.rows("blocked"), ingested.digest_of_datasets(["users", "items", "interactions/train"]))
    assert len({*found.values()}) == 1
    assert found["r.csv"][0] == 2


def test_two_users_who_differ_by_a_space_stay_two_and_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(user, f"i{item}") for user in ("u", "u ") for item in range(3)]
    listed(tmp_path / "out", f"--ratings={write_csv(tmp_path / 'r.csv', ['user_id', 'item_id'], rows)}", "--split=none")
    ingested = Workspace(str(tmp_path / "out")).finished("ingest")[-1]
    assert ingested.rows("users") == 2
    assert ingested.metrics["ratings_id_forms"]["user_id"]["padded"] == 3
    said = capsys.readouterr().err
    assert "warning: 3 of 6 rows of the ratings have white space around their user_id, such as 'u '" in said


@pytest.mark.slow
def test_a_job_that_refits_has_the_lists_of_both_tables(tmp_path: Path) -> None:
    users = write_csv(tmp_path / "u.csv", ["user_id"], [("new",)])
    block = write_csv(tmp_path / "b.csv", ["item_id"], [("i1",)])
    flags = [f"--ratings={write_ratings(tmp_path)}", f"--users={users}", f"--block_items={block}", "--refit", "--split=last"]
    assert run_command(run.main, [*QUICK, *flags, f"--output={tmp_path}/out"]) == OK
    assert {row["user_id"] for row in topk_of(tmp_path / "out")} >= {"new", "u1"}
    assert not any(each["item_id"] == "i1" for row in topk_of(tmp_path / "out") for each in row["recommendations"])
    release = read_json(f"{tmp_path}/out/{read_json(f'{tmp_path}/out/LATEST')['manifest']}")
    assert [source["dataset"] for source in release["sources"]] == ["ratings", "served users", "blocked items"]
    assert "lists" in release["evaluated"]["stages"]
