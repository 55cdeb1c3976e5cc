"""What a stage stored is loaded only where it is what the manifest says: towers, shards, rows, on any storage."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines import run
from pipelines.cli.command import MISTAKE, OK, run_command
from pipelines.job import single_stage
from schemas import stored as stored_module
from schemas.errors import InputError
from schemas.parquet_files import parquet_writer
from schemas.stage_files import ITEM_TOWER, USER_TOWER
from schemas.storage import WrittenFile, create_file, delete, join, read_bytes, upload_folder
from schemas.stored import StoredFolder, checked_folder
from schemas.workspace import Workspace
from tests.made_data import write_ratings
from tests.made_stored import stored_folder
from transforms.index.embed import ItemTower

FLAGS = ["--dim=8", "--l2=0.1", "--epochs=1", "--batch_size=64", "--num_shards=2", "--num_buckets=2", "--min_lift=0"]


def put(path: str, data: bytes) -> None:
    with create_file(path) as file:
        file.write(data)


def altered(data: bytes) -> bytes:
    """Four bytes in the middle are others."""
    at = len(data) // 2
    return data[:at] + bytes(each ^ 1 for each in data[at : at + 4]) + data[at + 4 :]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two saved towers, `tower` and `other`."""
    from transforms.train.towers import IdTower

    folder = tmp_path_factory.mktemp("saved")
    for seed, name in enumerate(["tower", "other"]):
        tower = IdTower(5, 3, seed=seed)
        tower.save(pa.array([f"x{i}" for i in range(5)]), folder / name, 1.0, tower.vectors[:, 0])
    return folder


@pytest.fixture
def tower(root: str, saved: Path) -> StoredFolder:
    upload_folder(saved / "tower", root, "tower")
    return stored_folder(join(root, "tower"))


def alter_graph(tower: StoredFolder, saved: Path) -> None:
    path = join(tower.path, "saved_model.pb")
    put(path, altered(read_bytes(path)))


def alter_variables(tower: StoredFolder, saved: Path) -> None:
    (path,) = (join(tower.path, file.path) for file in tower.files if ".data-" in file.path)
    put(path, altered(read_bytes(path)))


def put_another(tower: StoredFolder, saved: Path) -> None:
    root, _, name = tower.path.rpartition("/")
    upload_folder(saved / "other", root, name)


def lose_graph(tower: StoredFolder, saved: Path) -> None:
    delete(join(tower.path, "saved_model.pb"))


@pytest.mark.parametrize("change", [alter_graph, alter_variables, put_another, lose_graph])
def test_no_code_runs_from_a_tower_that_is_not_what_was_written(
    tower: StoredFolder, saved: Path, change: Callable[[StoredFolder, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    ItemTower(tower)
    change(tower, saved)
    monkeypatch.setattr(tf.saved_model, "load", lambda *_: pytest.fail("the tower was loaded"))
    with pytest.raises(InputError, match=r"tower/.* (is not what was written|is missing).*delete the stage's folder") as raised:
        ItemTower(tower)
    assert tower.path in str(raised.value)


def test_a_loader_sees_no_file_that_the_manifest_does_not_name(tower: StoredFolder) -> None:
    put(join(tower.path, "features.json"), b"{}")
    put(join(tower.path, "assets.extra", "payload.pickle"), b"")
    ItemTower(tower)  # What lies beside it is no part of it.
    with checked_folder(tower.path, tower.files) as folder:
        there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert there == sorted(file.path for file in tower.files)
    assert not folder.exists()
    with pytest.raises(InputError, match="a item tower must be a SavedModel"):
        ItemTower(StoredFolder(tower.path, tuple(file for file in tower.files if file.path != "saved_model.pb")))


def test_rows_are_read_from_unaltered_files_only(root: str) -> None:
    schema = pa.schema([("n", pa.int64())])
    written: list[WrittenFile] = []
    for part in range(2):
        with parquet_writer(root, f"rows/{part}.parquet", schema, written) as writer:
            writer.write_batch(pa.record_batch({"n": [part, part + 10]}))
    rows = stored_folder(join(root, "rows"))
    assert rows.paths == [join(root, "rows", "0.parquet"), join(root, "rows", "1.parquet")]
    assert pa.Table.from_batches(rows.blocks())["n"].to_pylist() == [0, 10, 1, 11]
    put(join(root, "rows", "1.parquet"), read_bytes(join(root, "rows", "0.parquet")))  # It is sound, but another's.
    blocks = rows.blocks()
    assert next(blocks)["n"].to_pylist() == [0, 10]
    with pytest.raises(InputError, match=r"rows/1.parquet is not what was written"):
        next(blocks)


@pytest.mark.slow
def test_a_job_refuses_the_tower_of_another_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    workspace = Workspace(str(output))
    command = [*FLAGS, f"--ratings={write_ratings(tmp_path)}", f"--output={output}"]
    assert run_command(run.main, command) == OK
    (own,) = workspace.finished("train")
    assert run_command(single_stage.stage_command("train"), [*command, "--learning_rate=0.02"]) == OK
    (other,) = (each for each in workspace.finished("train") if each.fingerprint != own.fingerprint)
    latest = Path(workspace.latest).read_bytes()
    for name, reader in ((ITEM_TOWER, "embed"), (USER_TOWER, "recommend")):
        folder = output / own.folder / name
        shutil.copytree(folder, tmp_path / name)
        shutil.copytree(output / other.folder / name, folder, dirs_exist_ok=True)
        (made,) = workspace.finished(reader)
        shutil.rmtree(output / workspace.stage_of(made.folder))
        capsys.readouterr()
        assert run_command(run.main, command) == MISTAKE
        said = capsys.readouterr().err
        assert "is not what was written (SHA-256" in said
        assert f"/{name}/" in said
        assert "Traceback" not in said
        assert Path(workspace.latest).read_bytes() == latest
        shutil.copytree(tmp_path / name, folder, dirs_exist_ok=True)


def test_a_kept_model_is_looked_at_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = Workspace(str(tmp_path / "out"))
    command = [*FLAGS, f"--ratings={write_ratings(tmp_path)}", f"--output={workspace.root}"]
    assert run_command(run.main, command) == OK
    (trained,) = workspace.finished("train")
    for name in (USER_TOWER, ITEM_TOWER):
        path = tmp_path / "out" / trained.folder / name / "saved_model.pb"
        data = path.read_bytes()
        path.write_bytes(altered(data))
        capsys.readouterr()
        assert run_command(run.main, [*command, "--reuse_model_from=LATEST", "--k=7"]) == MISTAKE
        said = capsys.readouterr().err
        assert f"{name}/saved_model.pb has other contents than were written" in said
        assert "cannot be built on" in said
        assert "Traceback" not in said
        path.write_bytes(data)


def test_a_tower_is_hashed_once_for_all_blocks(root: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import apache_beam as beam
    from apache_beam.testing.test_pipeline import TestPipeline

    from tests.test_embed import items_of
    from transforms.index.embed import EmbedItems

    upload_folder(saved / "tower", root, "tower")
    folder = stored_folder(join(root, "tower"))
    opened: list[str] = []
    original = stored_module.checked_folder

    def counted(path: str, files: tuple[WrittenFile, ...]) -> object:
        opened.append(path)
        return original(path, files)

    monkeypatch.setattr("transforms.index.embed.checked_folder", counted)
    with TestPipeline("FnApiRunner") as pipeline:
        items = pipeline | beam.Create([items_of([f"x{i}"]) for i in range(5)]) | beam.Reshuffle()
        _ = items | EmbedItems(folder, 4)
    assert opened == [folder.path]
