"""Files of an output that somebody has altered: nothing outside the output is read, nothing that is needed is deleted.

Each alteration is written as an attacker would, with a checksum that fits, or by hand, without one.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import lookup as lookup_command
from pipelines import releases
from pipelines.cli.command import MISTAKE, OK, run_command
from pipelines.engine.lease import time_in
from pipelines.lifecycle import lookup
from pipelines.lifecycle.verify import verify_release
from schemas.errors import InputError
from schemas.lease import Lease, read_leases, write_lease
from schemas.manifest import StageManifest, digest_of, read_manifest
from schemas.names import FILE, FOLDER, NAME, TOPK
from schemas.release import read_latest, read_named
from schemas.release_manifest import release_in
from schemas.shape import AtLeast, Each, Maybe, Text, check_shape
from schemas.storage import WrittenFile, exists, join, list_files, read_bytes, read_json, write_file
from schemas.workspace import Workspace
from tests.made_releases import signed, write_release
from tests.test_releases import TABLE, ask, overwrite

NOW = "--min_age_hours=0"

Manifest = dict[str, Any]


def files_below(root: str) -> dict[str, bytes]:
    return {file.path: read_bytes(file.path) for file in list_files(join(root, "**"))}


def path_of(root: str, release: Mapping[str, Any]) -> str:
    return join(root, Workspace(root).release_manifest(release["release"]))


def rewrite(root: str, release: Mapping[str, Any], name: str | None = None) -> None:
    """Writes a manifest in place of the one of the release `name`, by default of the one that it says it is of."""
    overwrite(path_of(root, {"release": name or release["release"]}), json.dumps(release).encode())


def with_value(value: Any, path: str, new: Any) -> Any:
    """Returns a copy of a JSON value with another value at a path such as 'stages/train/folder'."""
    copy = json.loads(json.dumps(value))
    at = copy
    *names, last = path.split("/")
    for name in names:
        at = at[int(name)] if isinstance(at, list) else at[name]
    at[int(last) if isinstance(at, list) else last] = new
    return copy


WAYS_OUT = [
    "../victim",
    "/etc/passwd",
    "stages//x",
    "stages/x/../../../victim",
    "stages/*/attempt-*",
    "",
    "s3://victim/x",
    "a\nb",
]


@pytest.mark.parametrize("way", WAYS_OUT)
def test_a_manifest_that_leads_astray_is_not_read_whatever_its_checksum(root: str, way: str) -> None:
    """Every place of a release's manifest that becomes a path."""
    release = write_release(root, 1, TABLE)
    release["evaluated"]["stages"] = {"train": release["stages"]["train"]}
    release["compared_with"] = {"release": "r", "digest": "d", "k": 3, "num_buckets": 2, "topk": [release["topk"][0]["path"]]}
    release["report"] = {"path": f"releases/{release['release']}/report.html", "rows": 0, "bytes": 1, "sha256": "0" * 64}
    rewrite(root, signed(release))
    assert read_named(Workspace(root), release["release"]).written == signed(release)
    for place in (
        "release",
        "stages/train/folder",
        "stages/train/manifest",
        "stages/train/fingerprint",
        "stages/recommend/files/0/path",
        "evaluated/stages/train/folder",
        "evaluated/stages/train/files/0/path",
        "topk/0/path",
        "compared_with/release",
        "compared_with/topk/0",
        "report/path",
    ):
        for altered in (True, False):
            rewrite(root, signed(with_value(release, place, way)), release["release"])
            with pytest.raises(InputError, match="is not the manifest of a release"):
                read_named(Workspace(root), release["release"], altered)


def test_files_of_another_stage_than_the_manifest_says_are_refused(root: str) -> None:
    release = write_release(root, 1, TABLE)
    other = release["stages"]["train"]
    for place, value in {
        "stages/recommend/folder": other["folder"],
        "stages/recommend/manifest": other["manifest"],
        "stages/recommend/files": other["files"],
    }.items():
        rewrite(root, signed(with_value(release, place, value)))
        with pytest.raises(InputError, match="recommend"):
            read_named(Workspace(root), release["release"])


def test_a_manifest_is_checked_against_its_checksum_whenever_it_is_read(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    old, release = (write_release(root, day, TABLE) for day in (1, 2))
    rewrite(root, release | {"rows": 1})
    words = "has other contents than were written"
    for command in (("show",), ("diff", old["release"]), ("rollback", release["release"]), ("gc", "--keep=1", NOW)):
        assert words in ask(capsys, *command, f"--output={root}", code=MISTAKE)["error"]
    assert run_command(lookup_command.main, [f"--output={root}", "--user=u1"]) == MISTAKE
    assert words in capsys.readouterr().err
    lines = {line["release"]: line for line in ask(capsys, "list", f"--output={root}")["releases"]}
    assert words in lines[release["release"]]["problem"]
    # One that an earlier program wrote may have none.
    unsigned = {name: value for name, value in release.items() if name != "checksum"}
    rewrite(root, unsigned)
    assert words in ask(capsys, "show", f"--output={root}", code=MISTAKE)["error"]
    rewrite(root, unsigned | {"schema_version": 2})
    assert ask(capsys, "show", f"--output={root}")["release"] == release["release"]


@pytest.mark.parametrize("is_signed", [True, False])
def test_gc_deletes_no_stage_of_what_is_served_where_paths_were_altered(
    root: str, capsys: pytest.CaptureFixture[str], is_signed: bool
) -> None:
    release = write_release(root, 1, TABLE)
    del release["checksum"]
    before = files_below(root)
    for name, stage in release["stages"].items():
        for folder in (stage["folder"].replace("/", "//", 1), f"./{stage['folder']}", join(root, stage["folder"])):
            altered = with_value(release, f"stages/{name}/folder", folder)
            rewrite(root, signed(altered) if is_signed else altered)
            error = ask(capsys, "gc", f"--output={root}", NOW, code=MISTAKE)["error"]
            assert "nothing is deleted" in error
            # It is served: whoever deletes its folder leaves a pointer to nothing.
            assert "serve a release again with python -m pipelines.releases rollback" in error
            assert "delete its folder" not in error
    rewrite(root, signed(release))
    assert files_below(root).keys() == before.keys()


def test_the_table_that_is_served_stays_though_its_manifest_names_other_folders(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A manifest with a checksum that fits, of another attempt than the pointer names."""
    release = write_release(root, 1, TABLE)
    elsewhere = json.dumps(release).replace("/attempt-", "/attempt-0")
    rewrite(root, signed(json.loads(elsewhere)))
    before = files_below(root)
    assert "are not of the same table" in ask(capsys, "gc", f"--output={root}", NOW, code=MISTAKE)["error"]
    assert files_below(root) == before


def test_gc_takes_no_name_of_a_folder_for_a_pattern(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(tmp_path)
    release = write_release(root, 1, TABLE)
    strange = ["stages/*/x", "stages/[a-z]*/x", f"{release['stages']['train']['folder'].rpartition('/')[0]}/attempt-*/x"]
    for path in strange:
        Path(root, path).parent.mkdir(parents=True)
        Path(root, path).write_text("x")
    Path(root, "stages/README").write_text("somebody's notes")
    assert ask(capsys, "gc", f"--output={root}", NOW)["deleted"] == []
    assert ask(capsys, "verify", f"--output={root}")["problems"] == []
    folder = Path(root, "releases", "*")
    folder.mkdir()
    folder.joinpath("manifest.json").write_text(json.dumps(signed(release | {"release": "*", "status": "failed"})))
    assert "nothing is deleted" in ask(capsys, "gc", f"--output={root}", "--keep=1", NOW, code=MISTAKE)["error"]
    assert exists(path_of(root, release))


def point(root: str, **changes: Any) -> None:
    overwrite(join(root, "LATEST"), json.dumps(read_json(join(root, "LATEST")) | changes).encode())


@pytest.mark.parametrize(
    "changes",
    [
        {"topk": ["../../victim/part-000000.parquet"]},
        {"topk": ["/etc/passwd"]},
        {"topk": ["stages/x/attempt-y/topk/../../../../../victim/part-000000.parquet"]},
        {"topk": "stages"},
        {"topk": {"a": 1}},
        {"topk": None},
        {"release": "../../victim", "manifest": "releases/../../victim/manifest.json"},
        {"manifest": "../../victim/manifest.json"},
        {"release": ["x"]},
        {"release": None},
        {"schema_version": "2"},
        {"schema_version": None},
        {"rolled_back_from": "../x"},
    ],
)
def test_a_pointer_that_leads_out_of_the_output_is_not_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    """There is something to read where it leads: a whole table of somebody else's."""
    root = str(tmp_path / "out")
    victim = write_release(str(tmp_path / "other"), 2, {"u1": ["secret"]})
    release = write_release(root, 1, TABLE)
    data = read_bytes(join(str(tmp_path / "other"), victim["topk"][0]["path"]))
    write_file(str(tmp_path), "victim/part-000000.parquet", data)
    overwrite(str(tmp_path / "victim" / "manifest.json"), json.dumps(signed(release | {"release": "../../victim"})).encode())
    point(root, **changes)
    for command, arguments in {
        lookup_command.main: ["--user=u1"],
        releases.main: ["verify"],
    }.items():
        assert run_command(command, [*arguments, f"--output={root}"]) == MISTAKE
        captured = capsys.readouterr()
        assert "secret" not in captured.out
        assert "LATEST is not a pointer to a release" in captured.err
        assert captured.err.count("\n") == 1


@pytest.mark.parametrize("way", WAYS_OUT)
def test_a_stages_manifest_names_nothing_but_its_own_files(root: str, way: str) -> None:
    stage = write_release(root, 1, TABLE)["stages"]["recommend"]
    path = join(root, stage["manifest"])
    value = read_json(path)
    for place in ("stage", "fingerprint", "folder", "files/0/path", "digest"):
        overwrite(path, json.dumps(with_value(value, place, way)).encode())
        with pytest.raises(InputError, match="is not a stage's manifest"):
            read_manifest(path)
    overwrite(
        path, json.dumps(with_value(value, "inputs", {"ingest": {"fingerprint": way, "datasets": [], "digest": "d"}})).encode()
    )
    with pytest.raises(InputError, match="is not a stage's manifest"):
        read_manifest(path)
    with pytest.raises(InputError, match="fingerprint of judge must be a name"):
        Workspace(root).read("judge", way)


def test_a_stages_manifest_with_files_that_are_not_of_its_digest_is_not_used(root: str) -> None:
    stage = write_release(root, 1, TABLE)["stages"]["recommend"]
    path = join(root, stage["manifest"])
    value = read_json(path)
    for altered in (
        with_value(value, "files/0/sha256", "0" * 64),
        with_value(value, "files/0/path", "topk/part-000009.parquet"),
        value | {"files": value["files"][1:]},
    ):
        overwrite(path, json.dumps(altered).encode())
        with pytest.raises(InputError, match="its files are not those of its digest"):
            read_manifest(path)
    overwrite(path, json.dumps(value).encode())
    assert isinstance(read_manifest(path), StageManifest)
    elsewhere = join(root, "stages/recommend-0000000000000000/manifest.json")
    write_file(root, "stages/recommend-0000000000000000/manifest.json", json.dumps(value).encode())
    with pytest.raises(InputError, match="it is of recommend"):
        read_manifest(elsewhere)


def test_a_user_is_looked_up_by_what_the_release_says_of_its_stages(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    stage = write_release(root, 1, TABLE, num_buckets=7)["stages"]["ingest"]
    path = join(root, stage["manifest"])
    value = read_json(path)
    overwrite(path, json.dumps(value | {"metrics": {"num_buckets": 1}}).encode())
    published = lookup.open_latest(Workspace(root))
    assert published.ingest.metrics == stage["metrics"]
    assert published.topk_of(["u1", "u2"]).num_rows == 2
    # Made again since, it has other files, or the same in another folder.
    again = json.loads(json.dumps(value).replace("/attempt-", "/attempt-0"))
    overwrite(path, json.dumps(again).encode())
    assert lookup.open_latest(Workspace(root)).ingest.folder == again["folder"]
    files = [{**file, "sha256": "0" * 64} for file in value["files"]]
    digest = digest_of([WrittenFile(**file) for file in files])
    overwrite(path, json.dumps(again | {"files": files, "digest": digest}).encode())
    assert run_command(lookup_command.main, [f"--output={root}", "--user=u1"]) == MISTAKE
    assert "needs other files of ingest than" in capsys.readouterr().err


def test_a_lease_or_a_withdrawal_of_another_name_deletes_nothing(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An expired lease is deleted by its id, a withdrawal by its release: neither may be a path to something else."""
    workspace = Workspace(root)
    for day in (1, 2):
        write_release(root, day, TABLE)
    write_file(root, "forgotten.json", b'{"schema_version": 1, "users": [], "items": [], "salt": ""}')
    write_lease(workspace, Lease("old", "run", "host", time_in(-9), time_in(-1)))
    path = join(root, Workspace.lease("old"))
    lease = read_json(path)
    for changes in (
        {"lease": "../forgotten"},
        {"lease": "other"},
        {"uses": ["../x"]},
        {"deletes": ["/"]},
        {"uses": "stages/x"},
        {"uses": [1]},
        {"expires_at": "never"},
        {"expires_at": 1},
        {"started_at": None},
    ):
        overwrite(path, json.dumps(lease | changes).encode())
        with pytest.raises(InputError, match="does not say which folders are in use"):
            read_leases(workspace)
        assert run_command(releases.main, ["gc", f"--output={root}", "--keep=1", NOW]) == MISTAKE
        assert exists(join(root, "forgotten.json"))
    overwrite(path, json.dumps(lease).encode())
    good = {"schema_version": 2, "release": "x", "digest": None, "replaced_by": "y", "at": time_in(0), "reason": ""}
    for changes in ({"release": "../forgotten"}, {"release": "y"}, {"replaced_by": 7}, {"at": "now"}, {"digest": ["d"]}):
        overwrite(join(root, "withdrawn/x.json"), json.dumps(good | changes).encode())
        assert "does not say which release was rolled back" in ask(capsys, "list", f"--output={root}", code=MISTAKE)["error"]
    overwrite(join(root, "withdrawn/x.json"), json.dumps(good).encode())
    assert run_command(releases.main, ["list", f"--output={root}"]) == OK


DAMAGES: list[Any] = [None, [], "x", -1.5]


def places(value: Any, path: str = "") -> list[str]:
    """Returns the paths of all values of a JSON value, the first entry of lists for all others."""
    found = [path] if path else []
    names = value if isinstance(value, dict) else ["0"] if isinstance(value, list) and value else []
    for name in names:
        its = value[int(name)] if isinstance(value, list) else value[name]
        found += places(its, f"{path}/{name}" if path else name)
    return found


def test_no_damage_of_a_release_brings_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each value of the manifest and of the pointer, replaced by values of all other types, with a checksum that fits."""
    root = str(tmp_path)
    old = write_release(root, 1, TABLE)
    release = write_release(root, 2, TABLE)
    release["base"] = {"release": old["release"], "users": 20, "carried": 10, "share_carried": 0.5, "compared": 3}
    release["base"] |= {"new_lists": {"new_history": 10}, "why_nobody": ""}
    release["stages"]["ingest"]["metrics"] |= {
        "ratings_read": {"rows": 9, "reasons": {"no user": {"count": 1, "example": {}}}},
        "newest_timestamp": 1_600_000_000,
        "rows_repeated": 1,
        "ids_joined": {"block_items": {"known": 1, "ids": 2}},
    }
    arrivals = {"ratings": 9, "newest": 1, "rejected": {"ratings": [1, 9]}, "reasons": {"ratings": "x"}, "repeated": [1, 8]}
    release["last"] = {"arrivals": arrivals, "past": []}
    rewrite(root, signed(release))
    commands = [["list"], ["show"], ["verify"], ["diff", old["release"]], ["gc", "--dry_run", "--keep=1", NOW], ["rollback"]]
    latest = read_bytes(join(root, "LATEST"))
    name = release["release"]
    for path in places({name: value for name, value in release.items() if name != "checksum"}):
        for damage in DAMAGES:
            rewrite(root, signed(with_value(release, path, damage)), name)
            is_read = True
            try:
                read_named(Workspace(root), name)
            except InputError:
                is_read = False
            for command in commands if is_read else commands[:1]:
                assert run_command(releases.main, [*command, f"--output={root}"]) in (OK, MISTAKE), (path, damage, command)
            if is_read:
                assert run_command(lookup_command.main, [f"--output={root}", "--user=u1"]) in (OK, MISTAKE), (path, damage)
                overwrite(join(root, "LATEST"), latest)
                for file in list_files(join(root, "withdrawn", "*")):
                    Path(file.path).unlink()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("contents", [b"[" * 100_000, b"\xff", b"", b"7", b'"x"', b'{"schema_version": 1e999}', b"null"])
def test_what_is_no_object_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], contents: bytes) -> None:
    root = str(tmp_path)
    release = write_release(root, 1, TABLE)
    write_file(root, "leases/x.json", b"{}")
    write_file(root, "withdrawn/x.json", b"{}")
    for path in (
        "LATEST",
        Workspace(root).release_manifest(release["release"]),
        release["stages"]["ingest"]["manifest"],
        "withdrawn/x.json",
        "leases/x.json",
        "forgotten.json",
    ):
        whole = read_bytes(join(root, path)) if exists(join(root, path)) else None
        overwrite(join(root, path), contents)
        for command in (["list"], ["show"], ["verify"], ["gc", NOW], ["rollback", release["release"]], ["forget", "--user=u1"]):
            capsys.readouterr()
            code = run_command(releases.main, [*command, f"--output={root}"])
            error = capsys.readouterr().err
            assert code in (OK, MISTAKE), (path, command)
            assert error.count("\n") <= 1, (path, command, error)
        if whole is not None:
            overwrite(join(root, path), whole)
        else:
            Path(root, path).unlink()


SHAPE = {
    "name": Text("a word", "[a-z]+"),
    "count": AtLeast(1),
    "share": float,
    "pair": Maybe([int, AtLeast(0, 5)]),
    "each": Each([int], Text("a word", "[a-z]+")),
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "A"}, "name must be a word, got 'A'"),
        ({"name": "a\n"}, "name must be a word, got 'a\\\\n'"),
        ({"count": 0}, "count must be a whole number, 1 or more, got 0"),
        ({"count": True}, "count must be a whole number, 1 or more, got True"),
        ({"share": "x" * 200}, "share must be a number, got 'xxx"),
        ({"each": {"a": [1], "b": [1, None]}}, r"each.b.1 must be a whole number, got None"),
        ({"each": {"A": [1]}}, "a name in each must be a word, got 'A'"),
        ({"each": []}, "each must be an object"),
        ({"each": {"a": {}}}, "each.a must be a list"),
        ({"pair": [1]}, "pair must be a list of 2, got"),
        ({"pair": [1, "x"]}, "pair.1 must be a whole number, 0 to 5, got 'x'"),
        ({"pair": [1, 6]}, "pair.1 must be a whole number, 0 to 5, got 6"),
    ],
)
def test_what_has_not_its_shape_is_named(changes: dict[str, Any], words: str) -> None:
    good = {"name": "a", "count": 1, "share": 1, "each": {"a": []}, "more": object()}
    check_shape(good, SHAPE)
    with pytest.raises(ValueError, match=words) as raised:
        check_shape(good | changes, SHAPE)
    assert len(str(raised.value)) < 200
    with pytest.raises(ValueError, match="count is missing"):
        check_shape({"name": "a"}, SHAPE)
    check_shape({}, {"x": Maybe(int)})
    check_shape({"x": None}, {"x": Maybe(int)})
    with pytest.raises(ValueError, match=r"a.x must be a whole number"):
        check_shape({"x": "1"}, {"x": Maybe(int)}, "a")


@given(st.text(st.sampled_from("ab0./*?[]\\~ -_\n\0"), max_size=12))
def test_a_name_is_one_folder_and_a_path_never_leaves_its_own(text: str) -> None:
    """Against pathlib, and against what a pattern of files gives a meaning to."""
    for what, prefix in ((NAME, ""), (FILE, ""), (FOLDER, "stages/"), (TOPK, "stages/a/attempt-b/topk/")):
        if what.matches(prefix + text):
            inside = Path("/root", prefix + text)
            assert ".." not in inside.parts
            assert str(inside) == f"/root/{prefix}{text}"
            assert not set(text) & set("*?[]\\~\n\0 ")
    assert not NAME.matches(text) or "/" not in text


def test_verifying_grows_with_the_number_of_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How often one file's entry is compared with another's, for a table of many files."""
    compared = []

    class Counted(dict[str, Any]):
        __hash__ = None

        def __eq__(self, other: object) -> bool:
            compared.append(self)
            return dict.__eq__(self, other)

    release = write_release(str(tmp_path), 1, {f"u{at}": ["i"] for at in range(50)}, num_buckets=300)
    release["topk"] = [Counted(file) for file in release["topk"]]
    assert len(release["topk"]) == 300
    for before_serving in (False, True):
        compared.clear()
        assert verify_release(Workspace(str(tmp_path)), release_in(release), before_serving).problems == ()
        assert len(compared) <= 3 * 300


def test_the_pointer_of_the_first_schema_version_is_still_read(root: str) -> None:
    release = write_release(root, 1, TABLE)
    pointer = {name: value for name, value in read_json(join(root, "LATEST")).items() if name != "schema_version"}
    overwrite(join(root, "LATEST"), json.dumps(pointer).encode())
    found = read_latest(Workspace(root))
    assert found is not None
    assert found.release == release["release"]
