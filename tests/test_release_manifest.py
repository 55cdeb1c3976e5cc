"""What the manifest of a release says is read once, and checked as it is read."""

from pathlib import Path
from typing import Any

import pytest

from schemas.manifest import as_json
from schemas.release_manifest import CarriedLists, Gate, LastTable, release_in
from schemas.storage import WrittenFile
from tests.made_releases import write_release
from transforms.evaluate.gates import ways_on

TABLE = {"u1": ["a"], "u2": ["b"]}


@pytest.fixture
def manifest(tmp_path: Path) -> dict[str, Any]:
    return as_json(write_release(str(tmp_path), 3, TABLE))


def test_a_manifest_is_read_as_values(manifest: dict[str, Any]) -> None:
    release = release_in(manifest)
    assert (release.name, release.status, release.rows) == (manifest["release"], "passed", 2)
    assert release.topk == tuple(WrittenFile(**file) for file in manifest["topk"])
    table = release.stages["recommend"]
    assert {f"{table.folder}/{file.path}" for file in table.files} >= {file.path for file in release.topk}
    assert release.evaluated is not None
    assert release.evaluated.quality == manifest["evaluated"]["metrics"]["quality"]
    assert [name for name, _ in release.all_stages] == ["ingest", "train", "recommend"]
    assert release.written is manifest
    assert not release.can_be_kept, "it does not say whether its model was refitted"


def test_what_may_be_missing_is_none_and_what_is_there_is_typed(manifest: dict[str, Any]) -> None:
    release = release_in(manifest)
    assert (release.compared_with, release.before, release.base, release.job, release.report) == (None,) * 5
    carried = {"users": 2, "carried": 1, "share_carried": 0.5, "compared": 1, "new_lists": {"history": 1}, "why_nobody": ""}
    table = {"release": "r", "digest": "d", "k": 3, "num_buckets": 2, "topk": [manifest["topk"][0]["path"]]}
    known = manifest["evaluated"] | {"refitted": False, "stages": {"train": manifest["stages"]["train"]}}
    more = manifest | {"base": {"release": "r", "items_gained": 4, **carried}, "compared_with": table, "evaluated": known}
    release = release_in(more)
    assert release.base == CarriedLists("r", 2, 1, 0.5, 1, {"history": 1}, "")
    assert release.compared_with == LastTable("r", "d", 3, 2, (manifest["topk"][0]["path"],))
    assert release.can_be_kept
    assert not release.refitted
    assert [name for name, _ in release.all_stages] == ["ingest", "train", "recommend", "train"]


def test_a_gate_of_an_earlier_version_says_less(manifest: dict[str, Any]) -> None:
    old = release_in(manifest | {"gates": {"old": {"status": "failed", "reason": "so"}}}).gates
    assert old == {"old": Gate("old", "failed", None, None, "so")}
    assert ways_on(old) == ["--force old=REASON"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": -1}, "rows must be a whole number, 0 or more, got -1"),
        ({"stages": {}}, "stages.ingest is missing"),
        ({"topk": [{"path": "x"}]}, "topk.0.path must be"),
        ({"evaluated": None}, "metrics.quality is missing"),
        ({"base": {"release": "r"}}, "base.users is missing"),
        ({"gates": {"quality": {"status": "passed"}}}, "gates.quality.reason is missing"),
    ],
)
def test_what_is_not_as_it_must_be_is_named(manifest: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        release_in(manifest | change)
