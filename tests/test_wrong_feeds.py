"""A feed that is wrong, of which a table is made that looks right, is not published: exit code 3, and a line that says why."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import run
from pipelines.cli.command import GATE_FAILED, OK, run_command
from tests.made_data import ratings, write_csv, write_items, write_ratings
from tests.test_publish import QUICK, failed_releases, release_of

pytestmark = pytest.mark.slow
"""These run whole jobs, or programs of their own: `make test-slow` runs them, and so does CI."""

Rows = list[tuple[str, str, float, int]]

TODAY = ("u3", "i30", 4.0, 1_600_000_001)

HEADER = ["user_id", "item_id", "rating", "timestamp"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder that holds sources and the output of a run on them, and the flags of that run but for --output."""
    folder = tmp_path_factory.mktemp("feeds")
    flags = [*QUICK, f"--items={write_items(folder)}"]
    assert run_command(run.main, [*flags, f"--ratings={write_ratings(folder)}", f"--output={folder / 'out'}"]) == OK
    return folder, flags


@pytest.fixture
def job(first: tuple[Path, list[str]], tmp_path: Path) -> tuple[Path, list[str]]:
    """A copy of the output, and all flags of the run that made it but for --ratings."""
    folder, flags = first
    shutil.copytree(folder / "out", tmp_path / "out")
    return tmp_path / "out", [*flags, f"--output={tmp_path / 'out'}"]


def shifted(rows: Rows) -> Rows:
    """Gives every user's ratings to another user."""
    users = list(dict.fromkeys(row[0] for row in rows))
    other = dict(zip(users, [*users[1:], users[0]], strict=True))
    return [(other[user], item, rating, time) for user, item, rating, time in rows]


def half_renamed(rows: Rows) -> Rows:
    """Writes the ids of every other user in another way."""
    users = list(dict.fromkeys(row[0] for row in rows))
    return [(f"id:{user}" if user in users[::2] else user, item, rating, time) for user, item, rating, time in rows]


def without_the_newest(rows: Rows) -> Rows:
    return sorted(rows, key=lambda row: row[3])[:-3]


@pytest.mark.parametrize(
    ("feed", "gates", "words"),
    [
        (shifted, {"histories"}, "had rated in release"),
        (half_renamed, {"histories"}, "30 of them are still there"),
        (without_the_newest, {"newest"}, "this is an older snapshot of the ratings; give the newest one"),
        (lambda rows: [*rows, *rows, TODAY] * 2, {"ratings", "repeated"}, "at most 0.5 of them more may come in"),
        (
            lambda rows: [*rows, TODAY] * 2,
            {"ratings", "repeated"},
            "565 of 1,130 ratings repeat another one of the same user and item",
        ),
        (lambda rows: [*rows[: len(rows) * 4 // 5], max(rows, key=lambda row: row[3])], {"ratings"}, "ratings, in release"),
    ],
)
def test_a_wrong_feed_is_not_published(
    job: tuple[Path, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    feed: Callable[[Rows], Rows],
    gates: set[str],
    words: str,
) -> None:
    output, flags = job
    served = (output / "LATEST").read_bytes()
    flags = [*flags, f"--ratings={write_csv(tmp_path / 'feed.csv', HEADER, feed(ratings()))}"]
    # What a wrong feed does to the lists may well stay within the limits of the gates that look at them.
    flags += ["--min_overlap=0", "--min_lift=0", "--max_quality_drop=1"]
    assert run_command(run.main, flags) == GATE_FAILED
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "error: gate" in line]
    assert captured.out.startswith("what came in")
    assert "if all is as it should be, run the same command again with --" in captured.out
    (failed,) = failed_releases(output)
    assert {name for name, gate in failed["gates"].items() if gate["status"] == "failed"} >= gates
    assert any(words in line for line in lines), lines
    assert (output / "LATEST").read_bytes() == served


def test_a_feed_that_was_loaded_twice_and_makes_the_same_table_is_told_of(
    job: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, flags = job
    assert run_command(run.main, [*flags, f"--ratings={write_csv(tmp_path / 'feed.csv', HEADER, ratings() * 2)}"]) == OK
    out, err = capsys.readouterr()
    assert "already published" in out
    assert "warning: 1,128 ratings came in, and 564 when release " in err
    found = {" ".join(line.replace("│", " ").split()) for line in out.splitlines()}
    assert {"ratings 1,128 564 +100.0%", "repeated ratings 564 (50.00%) 0"} <= found


def test_a_wrong_feed_can_be_forced_whatever_the_number_of_buckets(job: tuple[Path, list[str]], tmp_path: Path) -> None:
    output, flags = job
    flags = [*flags, f"--ratings={write_csv(tmp_path / 'feed.csv', HEADER, shifted(ratings()))}", "--num_buckets=3"]
    flags += ["--min_overlap=0", "--min_lift=0", "--max_quality_drop=1", "--force=histories=accounts were sold"]
    assert run_command(run.main, flags) == OK
    gate = release_of(output)["gates"]["histories"]
    assert (gate["status"], gate["forced"]) == ("forced", "accounts were sold")
    # What users had rated, in a loop over the rows.
    before = {user: {item for each, item, *_ in ratings() if each == user} for user in {row[0] for row in ratings()}}
    now = {user: {item for each, item, *_ in shifted(ratings()) if each == user} for user in before}
    assert gate["value"] == pytest.approx(sum(len(before[user] & now[user]) / len(before[user]) for user in before) / 60)


def test_a_first_table_without_a_list_is_not_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ratings()
    users, items = (list(dict.fromkeys(row[at] for row in rows)) for at in (0, 1))
    everything = [(user, item) for user in users for item in [*items, "unrated"]]
    unwanted = write_csv(tmp_path / "unwanted.csv", ["user_id", "item_id"], everything)
    flags = [*QUICK, f"--ratings={write_ratings(tmp_path)}", f"--items={write_items(tmp_path)}", f"--exclude={unwanted}"]
    assert run_command(run.main, [*flags, f"--output={tmp_path / 'out'}"]) == GATE_FAILED
    lines = capsys.readouterr().err
    assert "gate empty_lists failed: 60 of 60 lists are empty (1.0000), at most 0.01 of them may be" in lines
    assert "gate short_lists failed: 60 of 60 lists have less than half of 10 items" in lines
    assert "gate coverage failed: no list has an item" in lines
    assert not (tmp_path / "out" / "LATEST").exists()


def test_what_cannot_be_compared_fails_and_says_what_is_gone(
    job: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, flags = job
    release = release_of(output)
    ingest = release["stages"]["ingest"]
    shutil.rmtree(output / ingest["folder"] / "users")
    rows = [*ratings(), TODAY]
    flags = [*flags, f"--ratings={write_csv(tmp_path / 'tomorrow.csv', HEADER, rows)}"]
    assert run_command(run.main, flags) == GATE_FAILED
    line = next(line for line in capsys.readouterr().err.splitlines() if "error: gate" in line)
    assert f"gate histories failed: what the users of release {release['release']} had rated cannot be compared" in line
    assert f"{ingest['folder']}/users/part-000000.parquet is gone" in line
    assert run_command(run.main, [*flags, "--force=histories=the disk died"]) == OK


def test_after_a_forced_cut_of_the_catalogue_a_full_night_says_that_unlike_things_are_compared(
    job: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, flags = job
    flags = [*flags, f"--ratings={write_ratings(tmp_path)}", "--min_overlap=0", "--min_lift=0", "--max_quality_drop=1"]
    allow = write_csv(tmp_path / "allow.csv", ["item_id"], [(f"i{number}",) for number in range(14)])
    assert run_command(run.main, [*flags, f"--allow_items={allow}", "--force=items=a cut"]) == OK
    assert run_command(run.main, [*flags, "--learning_rate=0.02"]) == OK
    gates = release_of(output)["gates"]
    assert all("14 items to recommend then, 40 now" in gates[name]["reason"] for name in ("quality", "overlap"))
