"""Looking users up: lists beside histories, and why an item is in a list or is not, against a table that lists every item."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipelines import lookup as lookup_command
from pipelines import run
from pipelines.cli.command import MISTAKE, OK, run_command
from pipelines.lifecycle import lookup
from pipelines.lifecycle.why import BELOW, EXCLUDED, LISTED, SEEN, UNKNOWN, WITHHELD
from tests.made_data import ODD_IDS, ratings, write_csv, write_ratings

QUICK = [
    "--dim=8",
    "--l2=0.1",
    "--epochs=1",
    "--batch_size=64",
    "--num_shards=2",
    "--num_buckets=2",
    "--seed=7",
    "--min_lift=0",
]
BLOCKED, EXCLUDED_PAIRS = ["i1", "007"], [("u1", "i5"), ("u2", "i6")]
ODD_TITLE = "[bold red]Title[/] \x1b[2J\x07 of\u202e 7 [/nonsense]"
NUM_ITEMS = 40


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, float]]]:
    """An output whose lists have 5 items, and each user's scores of all eligible items, from a table that lists them all."""
    folder = tmp_path_factory.mktemp("job")
    ids = [*ODD_IDS, *(f"i{at}" for at in range(NUM_ITEMS - len(ODD_IDS))), "unrated"]
    titles = [(each, ODD_TITLE if each == "7" else f"Title of {each[:20]}") for each in ids if each != "i3"]
    flags = [
        *QUICK,
        f"--ratings={write_ratings(folder, num_items=NUM_ITEMS)}",
        f"--items={write_csv(folder / 'items.csv', ['item_id', 'title'], titles)}",
        f"--users={write_csv(folder / 'users.csv', ['user_id'], [('newcomer',)])}",
        f"--exclude={write_csv(folder / 'pairs.csv', ['user_id', 'item_id'], EXCLUDED_PAIRS)}",
        f"--block_items={write_csv(folder / 'block.csv', ['item_id'], [(each,) for each in BLOCKED])}",
        f"--output={folder / 'out'}",
        "--min_rating=2",
        "--split=none",
    ]
    scores = {}
    for k in (NUM_ITEMS, 5):
        assert run_command(run.main, [*flags, f"--k={k}"]) == OK
        if k == NUM_ITEMS:
            published = lookup.open_latest(lookup.Workspace(str(folder / "out")))
            users = sorted({user for user, *_ in ratings()} | {"newcomer"})
            rows = published.topk_of(users).to_pylist()
            scores = {row["user_id"]: {each["item_id"]: each["score"] for each in row["recommendations"]} for row in rows}
    return folder / "out", scores


def looked_up(output: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert run_command(lookup_command.main, [f"--output={output}", "--json", *flags]) == OK
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


USERS = ["u1", "u2", "7", "newcomer"]


def test_lists_and_histories_are_what_was_rated(job: tuple, capsys: pytest.CaptureFixture[str]) -> None:
    output, scores = job
    found = looked_up(output, capsys, *(f"--user={each}" for each in [*USERS, "u1"]))["users"]
    assert [each["user_id"] for each in found] == USERS
    for each in found:
        best = sorted(scores[each["user_id"]].items(), key=lambda pair: (-pair[1], pair[0].encode()))[:5]
        assert [(one["rank"], one["item_id"]) for one in each["recommendations"]] == [
            (rank, item) for rank, (item, _) in enumerate(best, 1)
        ]
        rated = sorted((time, item) for user, item, stars, time in ratings() if user == each["user_id"] and stars >= 2)
        assert [one["item_id"] for one in each["history"]] == [item for _, item in reversed(rated)]
        assert each["history_length"] == len(rated)
        for one in each["history"] + each["recommendations"]:
            title = {"i3": None, "7": ODD_TITLE}.get(one["item_id"], f"Title of {one['item_id'][:20]}")
            assert one["title"] == title
    short = looked_up(output, capsys, "--user=u1", "--top=2")["users"][0]
    assert (len(short["recommendations"]), len(short["history"])) == (2, 2)


@pytest.mark.parametrize("item", ["007", "unrated", "i5", "i6", *(f"i{at}" for at in range(7, 20, 3))])
def test_the_reason_is_the_first_rule_that_holds(job: tuple, item: str, capsys: pytest.CaptureFixture[str]) -> None:
    output, scores = job
    stars = {(user, item): stars for user, item, stars, _ in ratings()}
    for each in looked_up(output, capsys, *(f"--user={user}" for user in USERS), f"--why={item}")["users"]:
        user, why = each["user_id"], each["why"]
        listed = {one["item_id"]: one for one in each["recommendations"]}
        if item in listed:
            assert (why["answer"], why["rank"], why["score"]) == (LISTED, listed[item]["rank"], listed[item]["score"])
            continue
        assert why["rank"] is None
        expected = BELOW
        if item in BLOCKED:
            expected = WITHHELD
        elif (user, item) in EXCLUDED_PAIRS:
            expected = EXCLUDED
        elif (user, item) in stars:
            expected = SEEN
            assert ("below --min_rating" in why["sentence"]) == (stars[user, item] < 2)
        elif item == "unrated":
            expected = UNKNOWN
        assert why["answer"] == expected
        assert why["last_score"] == each["recommendations"][-1]["score"]
        if expected == BELOW:
            assert why["score"] == pytest.approx(scores[user][item], abs=1e-4)
            assert why["score"] <= why["last_score"] + 1e-4
        else:
            assert why["score"] is None
            assert item not in scores[user]


def test_people_see_both_lists_and_no_title_acts(job: tuple, capsys: pytest.CaptureFixture[str]) -> None:
    output, scores = job
    users = [user for user in scores if "7" in looked_up_items(output, user, capsys)]
    assert (
        run_command(lookup_command.main, [f"--output={output}", f"--user={users[0]}", "--user=u1", "--top=3", "--why=7"]) == OK
    )
    out = capsys.readouterr().out
    assert "\x1b" not in out.replace("\\x1b", "")
    assert not set(out) & set("\x07\u202e")
    assert "latest in the history" in out
    assert "user u1" in out
    assert "7 seen: number" in out or "7 rank" in out


def looked_up_items(output: Path, user: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    found = looked_up(output, capsys, f"--user={user}", "--top=3")["users"][0]
    return [each["item_id"] for each in found["history"] + found["recommendations"]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--user=nobody"], "user 'nobody' is not in release"),
        (["--user=u1", "--user=07"], "user '07' is not in release .*; there is '007' and '7': check --user"),
        (["--user=U1"], "; there is 'u1': check --user"),
        (["--user= u1 "], "; there is 'u1': check --user"),
        (["--user=7.0"], "; there is '007' and '7': check --user"),
        (["--user=u1", "--why=nothing"], "item 'nothing' is not in the catalogue of release .* items.: check --why"),
        (["--user=u1", "--why=I3"], "; there is 'i3': check --why"),
        (["--user=u1", "--why=0007"], "; there is '007' and '7': check --why"),
        (["--user=u1", "--top=0"], "top must be at least 1, got 0: raise --top"),
        (["--user=a\x1b[2Jb"], "user 'a.x1b.2Jb' is not in release"),
    ],
)
def test_mistakes_are_one_line_and_say_what_is_near(
    job: tuple, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(lookup_command.main, [f"--output={job[0]}", *flags]) == MISTAKE
    said = capsys.readouterr()
    assert re.search(message, said.err.replace("\n", " "))
    assert len(said.err.splitlines()) == 1
    assert not said.out
    assert run_command(lookup_command.main, [f"--output={job[0]}", "--json", *flags]) == MISTAKE
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["exit_status"] == MISTAKE
    assert re.search(message, json.loads(line)["error"])


@pytest.mark.parametrize(("stage", "dataset"), [("train", "user_tower"), ("embed", "embeddings")])
def test_no_score_is_made_of_what_is_not_what_the_release_was_made_with(
    job: tuple, stage: str, dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output, scores = job
    item = min(scores["u1"], key=lambda each: scores["u1"][each])
    manifest = lookup.open_latest(lookup.Workspace(str(output))).stage(stage)
    for file in manifest.dataset(dataset):
        path = output / manifest.folder / file.path
        data = path.read_bytes()
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
        try:
            assert run_command(lookup_command.main, [f"--output={output}", "--user=u1", f"--why={item}"]) == MISTAKE
            assert file.path in capsys.readouterr().err.replace("\n", "")
        finally:
            path.write_bytes(data)
        if stage == "embed":
            break  # Only the file that the item is in is read.
