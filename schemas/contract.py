"""Writes the generated parts of docs/reference/data-contract.md from the table's schemas: `python -m schemas.contract`.

A part lies between `<!-- name -->` and `<!-- end -->`; everything else on the page is written by hand.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from schemas.fields import doc_of
from schemas.topk import HISTORY, LAYOUTS

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "data-contract.md"

_PART = re.compile(r"<!-- (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def columns_of(schema: pa.Schema) -> str:
    """Returns a schema as a table of Markdown: a line for each column, and for each field of a list's structs."""
    lines = [
        f"| `{name}` | `{kind}` | {'yes' if field.nullable else 'no'} | {doc_of(field)} |" for name, kind, field in _all(schema)
    ]
    return "\n".join(["| column | type | null | what it holds |", "|---|---|---|---|", *lines])


def _all(fields: pa.Schema | pa.StructType, above: str = "") -> Iterator[tuple[str, str, pa.Field]]:
    for field in fields:
        yield f"{above}{field.name}", _name_of(field.type), field
        if pa.types.is_list(field.type):
            yield from _all(field.type.value_type, f"{above}{field.name}[].")


def _name_of(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list<struct<{', '.join(field.name for field in kind.value_type)}>>"
    return "float32" if pa.types.is_float32(kind) else str(kind)


def versions() -> str:
    """Returns what each version of the table brought, as a table of Markdown."""
    return "\n".join(
        ["| version | what it brought |", "|---|---|", *(f"| {each} | {what} |" for each, what in HISTORY.items())]
    )


PARTS: Mapping[str, Callable[[], str]] = {
    **{layout: lambda schema=schema: columns_of(schema) for layout, schema in LAYOUTS.items()},  # type: ignore[misc]
    "versions": versions,
}


def rendered(page: str) -> str:
    """Returns a page with its generated parts made anew."""
    return _PART.sub(lambda found: f"<!-- {found[1]} -->\n{PARTS[found[1]]()}\n<!-- end -->", page)


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
