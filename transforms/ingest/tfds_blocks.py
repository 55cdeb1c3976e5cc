"""Reads datasets of TensorFlow Datasets (TFDS) as Arrow blocks, a batch at a time.

TFDS and TensorFlow are imported when the first such dataset is asked for: they take seconds.
"""

import difflib
import importlib.resources.abc
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import MAX_ROWS, Block
from schemas.errors import InputError
from transforms.ingest.csv_pieces import NOT_UTF8, decode_utf8

_DOWNLOAD_RETRIES = 3


def _import_tfds() -> Any:
    """Imports TFDS, and mends what its release 4.9.10 forgot."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import dataset_builder

    if importlib.util.find_spec("importlib_resources") is None:
        # It uses this backport of a standard module on every Python, but asks pip for it only below Python 3.9.
        dataset_builder.importlib_resources = importlib.resources
    return tfds


def open_builder(name: str, data_dir: str | None) -> Any:
    """Returns the TFDS builder of a dataset, which may not be prepared yet.

    Args:
      name: Such as 'movielens/100k-ratings' or 'movielens/100k-ratings:0.1.1'.
      data_dir: Where prepared datasets are; None: where TFDS keeps them.

    Raises:
      InputError: if TFDS does not know the dataset, its configuration or its version.
    """
    tfds = _import_tfds()
    dataset = name.split("/")[0].split(":")[0]
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        near = difflib.get_close_matches(dataset, tfds.list_builders(with_community_datasets=False), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see tensorflow.org/datasets/catalog"
        raise InputError(f"TFDS has no dataset {dataset!r}: {hint}") from error
    except (ValueError, AssertionError) as error:
        reason = str(error).split(": ", 1)[-1].split("Here are", 1)[0]
        configs = [config.name for config in tfds.builder_cls(dataset).BUILDER_CONFIGS]
        near = difflib.get_close_matches(name.partition("/")[2].split(":")[0], configs, n=3)
        hint = f" did you mean {' or '.join(f'tfds:{dataset}/{config}' for config in near)}?" if near else ""
        raise InputError(f"TFDS cannot make {name!r}: {reason}{hint}") from error


@contextmanager
def _few_retries() -> Iterator[None]:
    """Makes TFDS give up after seconds, not minutes, where there is no network."""
    from tensorflow_datasets.core.download import downloader

    before = downloader.MAX_RETRIES
    downloader.MAX_RETRIES = _DOWNLOAD_RETRIES
    try:
        yield
    finally:
        downloader.MAX_RETRIES = before


def prepared_builder(name: str, data_dir: str | None) -> Any:
    """Returns the builder of a dataset, downloaded and prepared unless it is already.

    Raises:
      InputError: if TFDS does not know the dataset, or cannot download or prepare it.
    """
    builder = open_builder(name, data_dir)
    if not builder.is_prepared():
        tfds = _import_tfds()
        try:
            with _few_retries():
                builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        except Exception as error:  # Whatever a download, an archive or a disk can raise.
            raise InputError(
                f"tfds:{name} is not prepared in {builder.data_dir} and could not be downloaded "
                f"({type(error).__name__}: {str(error)[:200]}): prepare it on a machine with a network and pass its "
                "--tfds_data_dir, or give the ratings as files"
            ) from error
    return builder


def _flat(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ('outer/inner', leaf) of nested dictionaries."""
    if not hasattr(tree, "items"):
        yield path, tree
        return
    for name, value in tree.items():
        yield from _flat(value, f"{path}/{name}" if path else name)


def _arrow_type(feature: Any) -> pa.DataType | None:
    """Returns the Arrow type of a TFDS feature: a scalar's or a list's; None for images and other tensors."""
    tfds = _import_tfds()
    if isinstance(feature, tfds.features.Sequence):
        inner = _arrow_type(feature.feature)
        return None if inner is None or pa.types.is_list(inner) else pa.list_(inner)
    if isinstance(feature, tfds.features.ClassLabel):
        return pa.string() if feature.num_classes else pa.int64()
    if not isinstance(feature, tfds.features.Tensor) or len(feature.shape) > 1 or isinstance(feature, tfds.features.Image):
        return None
    dtype = feature.np_dtype
    try:
        scalar = pa.string() if dtype in (np.object_, np.str_, np.bytes_) else pa.from_numpy_dtype(dtype)
    except (pa.ArrowNotImplementedError, TypeError):
        return None
    return pa.list_(scalar) if feature.shape else scalar


def table_schema(builder: Any) -> pa.Schema:
    """Returns the columns of a dataset that fit a table; class labels are their names; text is checked by the reader."""
    types = {name: _arrow_type(feature) for name, feature in _flat(builder.info.features)}
    return pa.schema([(name, dtype) for name, dtype in types.items() if dtype is not None])


def _arrow(value: Any, feature: Any) -> pa.Array:
    """Converts a batch of one feature: [n], [n, m], or ragged. Text stays bytes, except in lists."""
    if hasattr(value, "row_splits"):
        return _lists(value.row_splits.numpy(), value.values.numpy(), feature)
    array = value.numpy()
    if array.ndim == 2:
        return _lists(np.arange(len(array) + 1) * array.shape[1], array.reshape(-1), feature)
    return _scalars(array, feature)


def _lists(offsets: np.ndarray, array: np.ndarray, feature: Any) -> pa.Array:
    """Converts [n] lists, which begin and end at offsets [n + 1] of their values."""
    values = _scalars(array, getattr(feature, "feature", feature))
    if pa.types.is_binary(values.type):
        texts, has_not_utf8 = decode_utf8(values)
        values = pc.replace_substring(texts, NOT_UTF8, "\ufffd") if has_not_utf8 else texts
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _scalars(array: np.ndarray, feature: Any) -> pa.Array:
    """Converts [n] values: class labels to their names, text to its bytes."""
    if getattr(feature, "num_classes", None):
        return pa.array(feature.names, pa.string()).take(pa.array(array, mask=array < 0))
    return pa.array(array, pa.binary()) if array.dtype == object else pa.array(array)


def read_split(builder: Any, split: str, start: int, stop: int, columns: list[str]) -> Iterator[Block]:
    """Yields examples `start` to `stop` of a split, in their order, as blocks of `columns`.

    Args:
      builder: A prepared dataset's.
      split: The split's name.
      start: The first example.
      stop: The one after the last.
      columns: Which columns of `table_schema` to read; nothing else is decoded.
    """
    tfds = _import_tfds()
    wanted: dict[str, Any] = {}
    for column in columns:
        *path, leaf = column.split("/")
        node = wanted
        for name in path:
            node = node.setdefault(name, {})
        node[leaf] = True
    dataset = builder.as_dataset(
        split=f"{split}[{start}:{stop}]",
        shuffle_files=False,
        decoders=tfds.decode.PartialDecoding(wanted),
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
    )
    features = dict(_flat(builder.info.features))
    for batch in dataset.ragged_batch(MAX_ROWS):
        values = dict(_flat(batch))
        yield pa.RecordBatch.from_arrays([_arrow(values[name], features[name]) for name in columns], names=columns)
