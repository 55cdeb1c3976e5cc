"""Builds Arrow schemas whose fields carry their documentation and whose metadata carries their version."""

from collections.abc import Iterable

import pyarrow as pa


def documented(name: str, dtype: pa.DataType, doc: str, *, nullable: bool = False) -> pa.Field:
    """Returns a field whose metadata holds `doc` (meaning, unit, range)."""
    return pa.field(name, dtype, nullable=nullable, metadata={"doc": doc})


def dataset_schema(dataset: str, version: int, fields: Iterable[pa.Field]) -> pa.Schema:
    """Returns a schema that names its dataset and its version in its metadata, so that every file carries them."""
    return pa.schema(list(fields), metadata={"dataset": dataset, "schema_version": str(version)})


def doc_of(field: pa.Field) -> str:
    """Returns the documentation that `documented` stored, or ''."""
    return (field.metadata or {}).get(b"doc", b"").decode()
