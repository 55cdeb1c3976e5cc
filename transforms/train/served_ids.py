"""Looks ids up inside a SavedModel: its vocabulary travels with it, so that whoever loads it needs nothing but TensorFlow."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import tensorflow as tf

from transforms.train.canonical_model import make_canonical


class ServedIds(tf.Module):
    """A lookup table from ids to codes.

    Args:
      ids: [num_ids] string, by code.
      scratch: a local folder that stays until the model is saved, `name` in it is free.
      name: of the vocabulary's file among the model's assets.
    """

    def __init__(self, ids: pa.Array, scratch: Path, name: str = "vocabulary") -> None:
        super().__init__()
        # One id a line, in base64: an id may hold a line break. A file, since a graph is at most 2 GB.
        lines = tf.io.encode_base64(tf.constant(ids.to_numpy(zero_copy_only=False), tf.string)).numpy()
        file = scratch / f"{name}.txt"
        file.write_bytes(b"\n".join(lines) + b"\n")
        self._codes = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                str(file),
                key_dtype=tf.string,
                key_index=tf.lookup.TextFileIndex.WHOLE_LINE,
                value_dtype=tf.int64,
                value_index=tf.lookup.TextFileIndex.LINE_NUMBER,
            ),
            default_value=-1,
            experimental_is_anonymous=True,  # Its name would hold the scratch folder's path, and could meet another table's.
        )

    def codes_of(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns [n] int64: the code of each of [n] string, -1 where there is none."""
        return self._codes.lookup(tf.io.encode_base64(ids))


def save_served(make: Callable[[Path], tf.Module], folder: Path) -> None:
    """Writes a SavedModel whose signature is the module's function `embed`; equal modules give equal files.

    Args:
      make: is given a folder for vocabularies, and returns the module.
      folder: a local folder.
    """
    with tempfile.TemporaryDirectory(prefix="shortlist-") as scratch:
        served = make(Path(scratch))
        tf.saved_model.save(served, str(folder), signatures=served.embed)
    make_canonical(folder)
