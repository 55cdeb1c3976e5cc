"""A finished stage is skipped; an unfinished one leaves nothing that counts; fingerprints follow all that matters."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.engine import fingerprint
from pipelines.engine.fingerprint import code_version
from pipelines.engine.progress import Progress
from pipelines.engine.stage import Stage, StageDefinition, run_stage, summary_of
from schemas.blocks import in_blocks
from schemas.errors import InputError
from schemas.manifest import StageManifest, check_complete, digest_of, fingerprint_of, read_manifest
from schemas.parquet_files import read_parquet_blocks
from schemas.storage import WrittenFile, exists, join, list_files, write_file, write_json
from schemas.workspace import Workspace
from transforms.io.write import WriteParts

ROOT = Path(__file__).parent.parent
SCHEMA = pa.schema([("n", pa.int64())])
OPTIONS = PipelineOptions(["--runner", "FnApiRunner"])


def counting(limit: int, **changes: Any) -> Stage:
    blocks = list(in_blocks(pa.table({"n": pa.array(range(limit), pa.int64())}), 10))

    def build(root: beam.Pipeline, attempt: str, limit: int) -> list:
        parts = root | "Numbers" >> beam.Create([(0, blocks)])
        return [parts | "Write" >> WriteParts(attempt, "numbers", SCHEMA), root | "Report" >> beam.Create([{"limit": limit}])]

    kind: dict[str, Any] = {"name": "count", "module": "transforms.io.write", "build": build}
    definition = StageDefinition(**{name: changes.pop(name, value) for name, value in kind.items()}, plan=counting)
    facts: dict[str, Any] = {"settings": {"limit": limit}, "inputs": {}, "job": limit}
    return Stage(definition, **(facts | changes))


def test_a_stage_writes_its_files_then_its_manifest_and_is_skipped_from_then_on(root: str) -> None:
    workspace = Workspace(root)
    made = run_stage(counting(25), workspace, OPTIONS, Progress())
    assert made.rows("numbers") == 25
    assert made.metrics == {"limit": 25}
    assert summary_of(made).startswith("1 file, ")
    (path,) = made.paths(root, "numbers")
    assert pa.Table.from_batches(read_parquet_blocks(path))["n"].to_pylist() == list(range(25))

    def never(*_: Any) -> list:
        raise AssertionError("a finished stage ran again")

    assert run_stage(counting(25, build=never), workspace, OPTIONS, Progress()) == made
    assert workspace.finished("count") == [made]
    assert read_manifest(workspace.manifest("count", made.fingerprint)) == made


def test_what_a_bundle_left_behind_is_gone_before_the_manifest_is_there(root: str) -> None:
    """A file of the same part under other boundaries, and one that was never finished; what is not the attempt's stays."""
    left = ["numbers/part-000000_000001.parquet", "numbers/part-000000.parquet.0123.tmp"]
    kept = ["tensorboard/train/events"]
    outside: list[str] = []

    def build(pipeline: beam.Pipeline, attempt: str, limit: int) -> list:
        stage, _, own = attempt.rpartition("/")
        outside.extend([f"{stage}/checkpoints/1", f"{stage}/{own}0/numbers/part-000000.parquet", f"{stage}/notes"])
        for path in [*(f"{attempt}/{name}" for name in (*left, *kept)), *outside]:
            folder, _, name = path.rpartition("/")
            write_file(folder, name, b"left")
        return list(counting(25).definition.build(pipeline, attempt, limit))

    made = run_stage(counting(25, build=build), Workspace(root), OPTIONS, Progress())
    attempt = join(root, made.folder)
    assert {file.path for file in list_files(join(attempt, "**"))} == {
        *made.paths(root, "numbers"),
        *(join(attempt, name) for name in (*kept, "summary.json")),
    }
    assert len(outside) == 3
    assert all(exists(path) for path in outside)


def test_a_failed_check_leaves_no_manifest(root: str) -> None:
    def check(metrics: Any, folder: str) -> None:
        raise InputError(f"limit {metrics['limit']} is too low")

    stage = counting(5, check=check)
    with pytest.raises(InputError, match="limit 5"):
        run_stage(stage, Workspace(root), OPTIONS, Progress())
    assert Workspace(root).read("count", stage.fingerprint) is None
    assert Workspace(root).finished("count") == []


def test_of_two_runs_at_once_the_first_manifest_stays(root: str) -> None:
    workspace = Workspace(root)
    inner: list[StageManifest] = []

    def check(metrics: Any, folder: str) -> None:
        # While this run is about to finish, another one does.
        inner.append(run_stage(counting(8), workspace, OPTIONS, Progress()))

    outer = run_stage(counting(8, check=check), workspace, OPTIONS, Progress())
    assert outer == inner[0]
    assert (
        len({file.path.rsplit("/", 2)[0] for file in list_files(join(root, "stages", "*", "attempt-*", "numbers", "*"))}) == 1
    )


def test_fingerprints_follow_settings_inputs_sources_and_code() -> None:
    first = counting(5)
    written = [WrittenFile("a", 1, 2, "00")]
    upstream = StageManifest("up", "f", "folder", digest_of(written), {}, {}, [], written, {}, {}, "", "")
    other = StageManifest("up", "f", "folder", digest_of([WrittenFile("a", 1, 2, "01")]), {}, {}, [], written, {}, {}, "", "")
    variants = [
        first,
        counting(6),
        counting(5, name="other"),
        counting(5, module="transforms.io.read"),
        counting(5, sources=[{"path": "x", "size": 1}]),
        counting(5, sources=[{"path": "x", "size": 2}]),
        counting(5, inputs={"up": upstream}),
        counting(5, inputs={"up": other}),
    ]
    assert len({variant.fingerprint for variant in variants}) == len(variants)
    assert counting(5).fingerprint == first.fingerprint
    assert fingerprint_of({"a": 1, "b": 2}) == fingerprint_of({"b": 2, "a": 1})


def test_what_a_stage_does_not_read_does_not_change_its_fingerprint() -> None:
    def upstream(*files: WrittenFile) -> StageManifest:
        return StageManifest("up", "f", "folder", digest_of(files), {}, {}, [], files, {}, {}, "", "")

    read, other, changed = WrittenFile("a/1", 1, 2, "00"), WrittenFile("b/1", 1, 2, "00"), WrittenFile("b/1", 1, 2, "01")
    first, second = (
        counting(5, inputs={"up": upstream(read, each)}, reads={"up": ["a"]}).fingerprint for each in (other, changed)
    )
    assert first == second
    assert counting(5, inputs={"up": upstream(read, other)}, reads={"up": ["b"]}).fingerprint != first


@pytest.mark.parametrize(
    ("now", "same"),
    [
        ({"contents": {"a": "01"}}, True),  # The same rows, in other files.
        ({"contents": {"a": "02"}}, False),
        ({"contents": {"b": "01"}}, False),  # Its files count, and they are others.
        ({}, False),
    ],
)
def test_rows_without_an_order_may_lie_in_other_files(now: dict[str, Any], same: bool) -> None:
    def read_of(outputs: dict[str, Any], *files: WrittenFile) -> str:
        upstream = StageManifest("up", "f", "folder", digest_of(files), {}, {}, [], files, {}, {}, "", "", outputs)
        return counting(5, inputs={"up": upstream}, reads={"up": ["a", "c"]}).fingerprint

    other = WrittenFile("c/1", 1, 2, "00")
    before = read_of({"contents": {"a": "01"}}, WrittenFile("a/1", 2, 2, "00"), other)
    assert (read_of(now, WrittenFile("a/1", 1, 1, "05"), WrittenFile("a/2", 1, 1, "06"), other) == before) == same
    # What is in an order beside it still counts.
    assert read_of(now, WrittenFile("a/1", 2, 2, "00"), WrittenFile("c/1", 1, 2, "07")) != before


def test_code_version_ignores_comments_docstrings_and_help_only(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {
        "transforms.a": '"""Doc."""\nfrom schemas.b import f\n\ndef g():\n    return f()\n',
        "schemas.b": "def f():\n    return 1\n",
    }
    monkeypatch.setattr(fingerprint, "_source", lambda name: sources[name])
    monkeypatch.setattr(fingerprint, "_is_module", lambda name: name in sources)

    def version() -> str:
        code_version.cache_clear()
        fingerprint._read_code.cache_clear()
        return code_version("transforms.a")

    before = version()
    sources["transforms.a"] = 'from schemas.b import f  # why\n\n\ndef g():\n    """What."""\n    return f()\n'
    assert version() == before
    sources["schemas.b"] = "def f():\n    return 2\n"
    assert version() != before
    sources["schemas.b"] = "dim = flag(64, help='how many')\n"
    before = version()
    sources["schemas.b"] = "dim = flag(64, help='the number')\n"
    assert version() == before
    sources["schemas.b"] = "dim = flag(32, help='the number')\n"
    assert version() != before
    code_version.cache_clear()
    fingerprint._read_code.cache_clear()


RESULTS = ("ingest", "lists", "train", "embed", "index", "calibrate", "recommend", "judge")


def decided_by() -> dict[str, tuple[str, dict[str, str]]]:
    """What of code and packages is in the fingerprint of each stage."""
    names = {name: f"pipelines.stages.{name}" for name in RESULTS}
    return {name: (code_version(module), fingerprint.package_versions(module)) for name, module in names.items()}


@pytest.mark.parametrize(
    ("package", "again"),
    [
        ("scann", {"index", "calibrate", "recommend"}),
        ("tensorflow", {"train", "embed", "calibrate", "recommend"}),
        ("tf-keras", {"train", "embed", "calibrate", "recommend"}),
        ("tensorflow-recommenders", {"train"}),
        ("numpy", set(RESULTS)),
        ("apache-beam", set()),
        ("rich", set()),
    ],
)
def test_another_version_of_a_package_runs_what_it_computes_again(
    package: str, again: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, found = decided_by(), importlib.metadata.version
    stage = counting(5, module="pipelines.stages.index")
    fingerprint_before = stage.fingerprint
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99" if name == package else found(name))
    fingerprint.package_versions.cache_clear()
    after = decided_by()
    assert {name for name in RESULTS if after[name] != before[name]} == again
    assert (stage.fingerprint != fingerprint_before) == ("index" in again)
    fingerprint.package_versions.cache_clear()


def test_what_only_draws_makes_no_stage_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def versions_with(changed: str) -> dict[str, Any]:
        original = fingerprint._source
        with monkeypatch.context() as patch:
            patch.setattr(
                fingerprint, "_source", lambda name: original(name) + ("\nNEW = 1\n" if name.startswith(changed) else "")
            )
            code_version.cache_clear()
            fingerprint._read_code.cache_clear()
            return decided_by()

    try:
        before = versions_with("nothing")
        assert versions_with("transforms.charts") == before
        assert versions_with("transforms.report") == before
        changed = versions_with("transforms.lists")
        assert changed["recommend"] != before["recommend"]
        assert changed["train"] == before["train"]
    finally:
        code_version.cache_clear()
        fingerprint._read_code.cache_clear()


def test_code_version_covers_every_module_that_a_stage_reaches() -> None:
    reached = fingerprint._imported("pipelines.stages.ingest")
    assert {"transforms.ingest.sources", "transforms.ingest.tfds_blocks", "transforms.io.partition", "schemas.items"} <= reached
    assert "transforms.train.towers" in fingerprint._imported("pipelines.stages.train")
    assert not any(name.startswith("pipelines") for name in reached - {"pipelines.stages.ingest"})


@pytest.mark.parametrize(
    "name", ["ingest", "lists", "train", "embed", "index", "calibrate", "recommend", "judge", "sweep", "tune", "export"]
)
def test_no_stage_is_made_again_for_a_chart(name: str) -> None:
    reached = fingerprint._imported(f"pipelines.stages.{name}")
    assert not [each for each in reached if each.startswith(("transforms.charts", "transforms.report"))]


@pytest.mark.parametrize("name", ["ingest", "lists", "embed", "index", "calibrate", "recommend", "judge", "tune", "export"])
def test_no_stage_but_those_that_train_is_made_again_for_how_training_goes(name: str) -> None:
    reached = fingerprint._imported(f"pipelines.stages.{name}")
    assert not {"transforms.train.training", "transforms.train.curves"} & reached


def test_the_code_of_a_stage_is_read_without_importing_what_only_work_needs() -> None:
    code = (
        "import sys; from pipelines.engine.fingerprint import code_version;"
        "from pipelines.job import chains; from pipelines.stages import export, judge;"
        "[code_version(each.module) for each in [*chains.STAGES.values(), judge.STAGE, export.STAGE]];"
        "print(*sorted({'tensorflow', 'tf_keras', 'scann', 'tensorflow_datasets'} & sys.modules.keys()))"
    )
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert made.stdout == "\n"


def test_a_finished_stage_whose_files_are_gone_or_cut_says_what_to_delete(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path))
    made = run_stage(counting(25), workspace, OPTIONS, Progress())
    (path,) = made.paths(str(tmp_path), "numbers")
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[:-1])
    with pytest.raises(
        InputError, match=rf"part-000000.parquet has {len(data) - 1} bytes, not {len(data)}: delete .*stages/count-"
    ):
        run_stage(counting(25), workspace, OPTIONS, Progress())
    Path(path).write_bytes(data[:-1] + b"x")
    check_complete(str(tmp_path), made)
    with pytest.raises(InputError, match="has other contents than were written"):
        check_complete(str(tmp_path), made, ["numbers"])
    Path(path).unlink()
    with pytest.raises(InputError, match="is gone"):
        run_stage(counting(25), workspace, OPTIONS, Progress())


def test_a_stage_does_not_begin_on_what_was_altered_though_its_size_is_the_same(tmp_path: Path) -> None:
    """What it does not read may be as it is."""
    workspace = Workspace(str(tmp_path))
    made = run_stage(counting(25), workspace, OPTIONS, Progress())
    (path,) = made.paths(str(tmp_path), "numbers")
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[:-1] + b"x")
    with pytest.raises(InputError, match=r"part-000000.parquet has other contents than were written: delete .*stages/count-"):
        run_stage(counting(3, inputs={"count": made}, reads={"count": ["numbers"]}), workspace, OPTIONS, Progress())
    assert workspace.finished("count") == [made]
    assert run_stage(counting(4, inputs={"count": made}, reads={"count": ["others"]}), workspace, OPTIONS, Progress())


def test_a_finished_stage_is_checked_again_by_the_settings_of_today(root: str) -> None:
    run_stage(counting(25), Workspace(root), OPTIONS, Progress())

    def check(metrics: Any, folder: str) -> None:
        raise InputError(f"limit {metrics['limit']} is too high")

    with pytest.raises(InputError, match="limit 25 is too high"):
        run_stage(counting(25, check=check), Workspace(root), OPTIONS, Progress())


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"{", "is not a stage's manifest"),
        (b"[]", "is not a stage's manifest"),
        (b'{"schema_version": 99}', "schema version 99"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_named(tmp_path: Path, contents: bytes, message: str) -> None:
    (tmp_path / "manifest.json").write_bytes(contents)
    with pytest.raises(InputError, match=message):
        read_manifest(str(tmp_path / "manifest.json"))


def test_a_manifest_is_never_half_there(root: str) -> None:
    path = join(root, "manifest.json")
    assert not exists(path)
    write_json(path, {"schema_version": 99})
    assert [file.path for file in list_files(join(root, "*"))] == [path]
