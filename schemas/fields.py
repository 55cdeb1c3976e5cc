"""Builds Arrow schemas whose fields carry their documentation and whose metadata carries their version."""

from collections.abc import Iterable

import pyarrow as pa


def documented(name: str, dtype: pa.DataType, doc: str, *, nullable: bool = False) -> pa.Field:
    """Returns a field whose metadata holds `doc` (meaning, unit, range)."""
    return pa.field(name, dtype, nullable=nullable, metadata={"doc": doc})


def dataset_schema(dataset: str, version: int | str, fields: Iterable[pa.Field], **more: str) -> pa.Schema:
    """Returns a schema whose metadata, which every file carries, names its dataset and its version, and says `more`."""
    return pa.schema(list(fields), metadata={"dataset": dataset, "schema_version": str(version), **more})


def doc_of(field: pa.Field) -> str:
    """Returns the documentation that `documented` stored, or ''."""
    return (field.metadata or {}).get(b"doc", b"").decode()
