"""Embeds users and items with trained towers, a block at a time, through Beam's RunInference.

A tower is a SavedModel that takes ids, so Beam's own TensorFlow handler, which loads Keras models and feeds them numbers,
does not fit; a handler here loads one and turns a block into a block. TensorFlow is imported when a tower is loaded.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Protocol

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import MaybeKeyedModelHandler, ModelHandler, RunInference

from schemas.blocks import Block
from schemas.embeddings import embeddings_schema
from schemas.errors import InputError
from schemas.manifest import CONTENTS
from schemas.stage_files import FEATURES_FILE
from schemas.stored import StoredFolder, checked_folder
from transforms.io.partition import hash_vectors
from transforms.io.progress import NAMESPACE
from transforms.io.read import PlacedBlock
from transforms.search.id_map import list_lengths
from transforms.train.encode_features import encoder_from_json

_ITEMS_AT_ONCE = 1 << 20
"""About how many items of histories are looked up in one piece: some 100 MB of text."""

ITEMS_WITHOUT_VECTOR = "items_without_vector"
"""The counter of the items that the tower does not know."""


class Tower(Protocol):
    """Turns blocks into vectors."""

    dim: int

    def embed(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """Returns [n, dim] float32 vectors, and [n] bool: which rows the tower knows (the others' vectors are zero)."""


class _SavedTower:
    """A SavedModel: ids, [n] string -> {"embedding": [n, dim] float32, "known": [n] bool}.

    Args:
      stored: its folder; nothing in it is loaded before all of it is proved to be what was written.

    Raises:
      InputError: if there is no such model, or it is altered, or, in `embed`, if a vector is not finite.
    """

    kind: ClassVar[str]

    def __init__(self, stored: StoredFolder) -> None:
        if not stored.has("saved_model.pb"):
            raise InputError(
                f"a {self.kind} tower must be a SavedModel, got {stored.path} without saved_model.pb: check the path"
            )
        with checked_folder(stored.path, stored.files) as folder:
            self._load(folder)

    def _load(self, folder: Path) -> None:
        """Loads the tower from a local folder, which goes afterwards."""
        import tensorflow as tf

        # The model owns the variables that its function uses.
        self.model = tf.saved_model.load(str(folder))
        self._function = self.model.signatures["serving_default"]
        self.dim = int(self._function.structured_outputs["embedding"].shape[1])

    def embed(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """Returns [n, dim] float32 vectors, and [n] bool: which rows the tower knows (the others' vectors are zero)."""
        vectors, known = zip(*(self._embed(piece) for piece in self._pieces_of(block)), strict=True)
        return (vectors[0], known[0]) if len(vectors) == 1 else (np.concatenate(vectors), np.concatenate(known))

    def _pieces_of(self, block: Block) -> list[Block]:
        return [block]

    def _embed(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        import tensorflow as tf

        ids = block[f"{self.kind}_id"]
        output = self._function(**{name: tf.constant(value) for name, value in self._inputs_of(block).items()})
        vectors, known = output["embedding"].numpy(), output["known"].numpy()
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            first = ids[int(np.argmin(finite))].as_py()
            raise InputError(
                f"vectors must be finite, got nan or inf for {self.kind} {first!r}: train again with a lower --learning_rate"
            )
        return vectors, known

    def _inputs_of(self, block: Block) -> dict[str, np.ndarray]:
        return {"ids": _texts(block[f"{self.kind}_id"])}


class UserTower(_SavedTower):
    """Embeds blocks of USERS; load it in `setup()`, once a process.

    A tower by history takes two more inputs: `history`, the item ids of all users one after another, and `history_lengths`,
    [n] int64. A block with many of them is embedded in pieces, so that memory does not grow with the histories.
    """

    kind = "user"

    @property
    def _takes_history(self) -> bool:
        return "history" in self._function.structured_input_signature[1]

    def _pieces_of(self, block: Block) -> list[Block]:
        if not self._takes_history:
            return [block]
        piece = np.cumsum(list_lengths(block["history"])) // _ITEMS_AT_ONCE
        cuts = [0, *(np.flatnonzero(np.diff(piece)) + 1).tolist(), block.num_rows]
        return [block.slice(start, end - start) for start, end in pairwise(cuts)]

    def _inputs_of(self, block: Block) -> dict[str, np.ndarray]:
        inputs = super()._inputs_of(block)
        if self._takes_history:
            history = block["history"]
            inputs |= {"history": _texts(history.flatten()), "history_lengths": list_lengths(history)}
        return inputs


class ItemTower(_SavedTower):
    """Embeds blocks of ITEMS; load it in `setup()`, once a process.

    A tower that looks at features has what encodes them beside it, and takes the items' bags of codes too: see
    `transforms.train.encode_features`.
    """

    kind = "item"

    def _load(self, folder: Path) -> None:
        super()._load(folder)
        features = folder / FEATURES_FILE
        self._encoder = encoder_from_json(json.loads(features.read_bytes())) if features.exists() else None

    def _inputs_of(self, block: Block) -> dict[str, np.ndarray]:
        inputs = super()._inputs_of(block)
        return inputs | self._encoder.encode(block)._asdict() if self._encoder else inputs


def _texts(ids: pa.Array) -> np.ndarray:
    return ids.to_numpy(zero_copy_only=False).astype(object)


def vector_column(vectors: np.ndarray, known: np.ndarray | None = None) -> pa.FixedSizeListArray:
    """Returns [n, dim] float32 as FixedSizeList<float32>[dim], null where `known` ([n] bool) is given and false."""
    mask = None if known is None else pa.array(~known)
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1], mask=mask)


def embed_items(block: Block, tower: Tower, dim: int) -> Block:
    """Returns the rows of `embeddings_schema(dim)` of the items that the tower knows.

    Args:
      block: rows of ITEMS, with item_id and what the tower looks at.
      tower: an item tower.
      dim: that its vectors must have.

    Raises:
      InputError: if they have another.
    """
    if tower.dim != dim:
        raise InputError(f"the item tower must give vectors of {dim} dimensions, got {tower.dim}: pass the towers' own --dim")
    vectors, known = tower.embed(block)
    rows = block.filter(pa.array(known))
    return pa.RecordBatch.from_arrays([rows["item_id"], vector_column(vectors[known])], schema=embeddings_schema(dim))


def embed_users(block: Block, tower: Tower) -> Block:
    """Returns the block with a column `vector`, [dim] float32, null where the tower does not know the user.

    Args:
      block: rows of USERS; with a column `embed`, bool, only where that is true.
      tower: a user tower.
    """
    asked = block["embed"].to_numpy(zero_copy_only=False) if "embed" in block.schema.names else np.ones(len(block), bool)
    vectors, known = np.zeros((len(block), tower.dim), np.float32), np.zeros(len(block), bool)
    if asked.any():
        vectors[asked], known[asked] = tower.embed(block if asked.all() else block.filter(pa.array(asked)))
    column = vector_column(vectors, known)
    schema = block.schema.append(pa.field("vector", column.type))
    return pa.RecordBatch.from_arrays([*block.columns, column], schema=schema)


class _BlockHandler(ModelHandler[Block, Block, Tower]):
    """A model handler for which one block is a batch.

    Args:
      load: makes the tower.
      embed: (block, tower) -> block.
    """

    def __init__(self, load: Callable[[], Tower], embed: Callable[[Block, Tower], Block]) -> None:
        super().__init__()
        self._load = load
        self._embed = embed

    def load_model(self) -> Tower:
        return self._load()

    def run_inference(self, batch: Sequence[Block], model: Tower, inference_args: dict[str, Any] | None = None) -> list[Block]:
        return [self._embed(block, model) for block in batch]

    def batch_elements_kwargs(self) -> dict[str, Any]:
        return {"min_batch_size": 1, "max_batch_size": 1}

    def get_num_bytes(self, batch: Sequence[Block]) -> int:
        return sum(block.nbytes for block in batch)

    def get_metrics_namespace(self) -> str:
        return NAMESPACE


@dataclass
class EmbedItems(beam.PTransform):
    """Embeds the catalogue; items that the tower does not know are dropped and counted (`items_without_vector`).

    Blocks may have keys, which stay; so does a block of which no item is known, empty.

    Attributes:
      tower: the item tower's folder.
      dim: that its vectors must have.
    """

    tower: StoredFolder
    dim: int

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, items: beam.PCollection) -> beam.PCollection:
        handler: ModelHandler = MaybeKeyedModelHandler(_BlockHandler(lambda: ItemTower(self.tower), self._embed))
        return items | "EmbedItem" >> RunInference(handler).with_output_types(items.element_type)

    def _embed(self, block: Block, tower: Tower) -> Block:
        embeddings = embed_items(block, tower, self.dim)
        Metrics.counter(NAMESPACE, ITEMS_WITHOUT_VECTOR).inc(block.num_rows - embeddings.num_rows)
        return embeddings


@dataclass
class DigestEmbeddings(beam.PTransform):
    """Reports a digest of placed blocks of embeddings, 16 hex digits, as the contents of a dataset: see `CONTENTS`.

    It is the sum of the rows' hashes: equal for equal ids and vectors, in whatever order, blocks and files they are. With an
    item that the tower does not know, files of a large catalogue begin elsewhere, and yet nothing has changed.

    Attributes:
      dataset: its name.
    """

    dataset: str

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, embeddings: beam.PCollection[PlacedBlock]) -> beam.PCollection[dict[str, dict[str, str]]]:
        return (
            embeddings
            | "SumHashes" >> beam.MapTuple(lambda _, block: _sum_of_hashes(block))
            | "Sum" >> beam.CombineGlobally(_sum_of_numbers)
            | "Report" >> beam.Map(lambda total: {CONTENTS: {self.dataset: f"{total:016x}"}})
        )


def _sum_of_hashes(block: Block) -> int:
    return _sum_of_numbers([int(hash_vectors(block["item_id"], block["embedding"]).sum(dtype=np.uint64))])


def _sum_of_numbers(numbers: Iterable[int]) -> int:
    return sum(numbers) % 2**62  # Beam's integers have 63 bits.


@dataclass
class EmbedUsers(beam.PTransform):
    """Appends each user's vector (`vector`, null where the tower does not know the user) to blocks of USERS.

    Blocks may have keys, which stay.

    Attributes:
      tower: the user tower's folder.
    """

    tower: StoredFolder

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, users: beam.PCollection) -> beam.PCollection:
        handler: ModelHandler = MaybeKeyedModelHandler(_BlockHandler(lambda: UserTower(self.tower), embed_users))
        return users | "EmbedUser" >> RunInference(handler).with_output_types(users.element_type)
