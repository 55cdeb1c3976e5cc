"""Embedding: blocks through towers, as plain functions with a fake one, and through RunInference with a saved one."""

from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from schemas.blocks import Block
from schemas.embeddings import embeddings_schema
from schemas.errors import InputError
from schemas.items import with_features
from schemas.manifest import CONTENTS
from schemas.storage import join, upload_folder
from schemas.users import USERS
from tests.made_stored import stored_folder
from transforms.index.embed import (
    ITEMS_WITHOUT_VECTOR,
    DigestEmbeddings,
    EmbedItems,
    EmbedUsers,
    ItemTower,
    UserTower,
    embed_items,
    embed_users,
    vector_column,
)
from transforms.io.partition import hash_vectors
from transforms.io.read import Place
from transforms.train.recency import lift_items


class FakeTower:
    """A one-hot of the last digit of an id; knows ids that end in a digit."""

    dim = 10

    def embed(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        ids = block.column(0).to_pylist()
        known = np.array([each[-1].isdigit() for each in ids], bool)
        digits = np.array([int(each[-1]) if each[-1].isdigit() else 0 for each in ids], np.int64)
        return np.eye(10, dtype=np.float32)[digits] * known[:, None], known


def items_of(ids: list[str]) -> Block:
    schema = with_features([pa.field("genre", pa.string())])
    n = len(ids)
    numbers = pa.array(range(n))
    texts = {"item_id": pa.array(ids, pa.string()), "title": pa.nulls(n, pa.string()), "genre": pa.nulls(n, pa.string())}
    columns = [texts[field.name] if field.name in texts else numbers.cast(field.type) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def users_of(ids: list[str]) -> Block:
    lists = pa.array([[]] * len(ids), pa.list_(pa.string()))
    return pa.RecordBatch.from_arrays([pa.array(ids, pa.string()), *[lists] * (len(USERS) - 1)], schema=USERS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A saved tower of the ids x0 to x4, and its vectors."""
    from transforms.train.towers import IdTower

    folder = tmp_path_factory.mktemp("towers") / "tower"
    tower = IdTower(5, 3, seed=0)
    bias = np.arange(5, dtype=np.float32)
    tower.save(pa.array([f"x{i}" for i in range(5)]), folder, 1.0, bias)
    return folder, lift_items(tower.vectors, 1.0, bias)


def test_items_that_the_tower_does_not_know_are_dropped() -> None:
    block = embed_items(items_of(["a3", "b", "a0", "c"]), FakeTower(), 10)
    assert block.schema.equals(embeddings_schema(10), check_metadata=True)
    assert block["item_id"].to_pylist() == ["a3", "a0"]
    assert [vector.index(1) for vector in block["embedding"].to_pylist()] == [3, 0]
    block.validate(full=True)


def test_users_keep_their_rows() -> None:
    users = users_of(["a3", "b", "a0"])
    block = embed_users(users, FakeTower())
    assert block.select(USERS.names).equals(users)
    assert block.schema.metadata == USERS.metadata
    assert block.schema.field("vector").type == pa.list_(pa.float32(), 10)
    three, none, zero = block["vector"].to_pylist()
    assert (three.index(1), none, zero.index(1)) == (3, None, 0)
    block.validate(full=True)


@pytest.mark.parametrize("ids", [[], ["b"]])
def test_blocks_without_a_known_row(ids: list[str]) -> None:
    assert embed_items(items_of(ids), FakeTower(), 10).num_rows == 0
    assert embed_users(users_of(ids), FakeTower())["vector"].to_pylist() == [None] * len(ids)


def test_a_slice_is_embedded_as_itself() -> None:
    block = embed_items(items_of(["a3", "b", "a0", "a7"]).slice(1, 3), FakeTower(), 10)
    assert block["item_id"].to_pylist() == ["a0", "a7"]
    assert [vector.index(1) for vector in block["embedding"].to_pylist()] == [0, 7]


def test_another_dim_is_refused() -> None:
    with pytest.raises(InputError, match="the item tower must give vectors of 64 dimensions, got 10: pass"):
        embed_items(items_of(["a3"]), FakeTower(), 64)


def test_no_tower_at_the_path(root: str) -> None:
    with pytest.raises(InputError, match=r"a user tower must be a SavedModel, got .*nothing without saved_model.pb: check"):
        UserTower(stored_folder(join(root, "nothing")))


def test_a_vector_that_is_not_finite_names_its_item(tmp_path: Path) -> None:
    from transforms.train.towers import IdTower

    tower = IdTower(3, 2, seed=0)
    tower.embeddings.assign([[0, 1], [np.nan, 0], [0, np.inf]])
    tower.save(pa.array(["a", "b", "c"]), tmp_path / "tower", 1.0, np.zeros(3, np.float32))
    with pytest.raises(InputError, match="vectors must be finite, got nan or inf for item 'b': train again with a lower"):
        ItemTower(stored_folder(str(tmp_path / "tower"))).embed(items_of(["a", "b", "c"]))


@pytest.mark.parametrize("keyed", [False, True])
def test_embed_items(root: str, saved: tuple[Path, np.ndarray], keyed: bool) -> None:
    folder, vectors = saved
    upload_folder(folder, root, "item_tower")
    blocks = [items_of(["x1", "y", "x0"]), items_of(["z"]), items_of(["x4", "x2"])]
    expected = [["x1", "x0"], [], ["x4", "x2"]]

    def check(found: list) -> None:
        if keyed:
            assert {key: block["item_id"].to_pylist() for key, block in found} == dict(enumerate(expected))
            found = [block for _, block in found]
        assert all(block.schema.equals(embeddings_schema(4)) for block in found)
        assert sorted(block["item_id"].to_pylist() for block in found) == sorted(expected)
        rows = {row["item_id"]: row["embedding"] for block in found for row in block.to_pylist()}
        assert rows == {f"x{i}": vectors[i].tolist() for i in (0, 1, 2, 4)}

    with TestPipeline("FnApiRunner") as p:
        items = p | beam.Create(list(enumerate(blocks)) if keyed else blocks)
        assert_that(items | EmbedItems(stored_folder(join(root, "item_tower")), 4), check)
    (counter,) = p.result.metrics().query(MetricsFilter().with_name(ITEMS_WITHOUT_VECTOR))["counters"]
    assert counter.committed == 2


@pytest.mark.parametrize("keyed", [False, True])
def test_embed_users(saved: tuple[Path, np.ndarray], keyed: bool) -> None:
    folder, vectors = saved
    blocks = [users_of(["x1", "y"]), users_of(["x3"])]
    expected = [[vectors[1].tolist(), None], [vectors[3].tolist()]]

    def check(found: list) -> None:
        if keyed:
            assert {key: block["vector"].to_pylist() for key, block in found} == dict(enumerate(expected))
        else:
            assert sorted((block["vector"].to_pylist() for block in found), key=len, reverse=True) == expected

    with TestPipeline("FnApiRunner") as p:
        users = p | beam.Create(list(enumerate(blocks)) if keyed else blocks)
        assert_that(users | EmbedUsers(stored_folder(str(folder))), check)


@pytest.mark.parametrize("unknown", [[], ["y0", "y1"]])
def test_blocks_without_a_known_item_add_nothing_to_the_digest(saved: tuple[Path, np.ndarray], unknown: list[str]) -> None:
    blocks = [items_of(["x1", "x2", "x4"]), *([items_of(unknown)] if unknown else [])]
    ids, vectors = pa.array(["x1", "x2", "x4"]), saved[1][[1, 2, 4]]
    expected = int(hash_vectors(ids, vector_column(vectors)).sum(dtype=np.uint64)) % 2**62
    placed = [(Place(0, at, at == len(blocks) - 1), block) for at, block in enumerate(blocks)]
    with TestPipeline("FnApiRunner") as pipeline:
        embeddings = pipeline | beam.Create(placed) | EmbedItems(stored_folder(str(saved[0])), saved[1].shape[1])
        assert_that(embeddings | DigestEmbeddings("e"), equal_to([{CONTENTS: {"e": f"{expected:016x}"}}]))
