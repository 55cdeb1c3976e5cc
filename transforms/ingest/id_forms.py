"""Notices ids that are likely not what was meant: with white space around them, or whole numbers that end in `.0`.

Ids are text, and text that differs is another id, so what is noticed is counted and stays as it is. There is one exception: a
text file has no types, and `7.0` in it is what pandas writes of the integer 7 where a column has gaps. It becomes `7`, as a
float of Parquet does, so that the same data has the same ids in either format.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import Block
from schemas.words import counted, have
from transforms.ingest.join_ids import shortened

_EXAMPLES = 3
_SPACES = np.zeros(256, bool)
_SPACES[[9, 10, 11, 12, 13, 28, 29, 30, 31, 32]] = True
_SPACES[128:] = True  # A byte of a longer character, which may be a space: those few are looked at.

Forms = dict[str, dict[str, Any]]
"""By column of ids: `rows`; `padded`, how many ids have white space around them, with `padded_examples`; `whole_floats`, how
many are whole numbers that end in `.0`."""


def forms_of(ids: pa.Array) -> dict[str, Any]:
    """Describes [n] string ids, none of them null or empty."""
    padded, whole_floats = pa.array([], pa.string()), 0
    if len(ids):
        ids = ids.cast(pa.large_string())
        offsets = np.frombuffer(ids.buffers()[1], np.int64)[ids.offset : ids.offset + len(ids) + 1]
        text = np.frombuffer(ids.buffers()[2], np.uint8)
        first, last = text[offsets[:-1]], text[offsets[1:] - 1]
        some = ids.filter(pa.array(_SPACES[first] | _SPACES[last]))
        padded = some.filter(pc.not_equal(some, pc.utf8_trim_whitespace(some)))
        zero = (last == ord("0")) & (text[np.maximum(offsets[1:] - 2, 0)] == ord("."))
        whole_floats = int(pc.sum(pc.match_substring_regex(ids.filter(pa.array(zero)), r"^-?[0-9]+\.0$")).as_py() or 0)
    examples = pc.unique(padded)
    examples = examples.take(pc.sort_indices(examples)[:_EXAMPLES]).to_pylist()
    return {"rows": len(ids), "padded": len(padded), "padded_examples": examples, "whole_floats": whole_floats}


def forms_of_block(block: Block) -> Forms:
    """Describes the columns of ids of a valid block."""
    return {name: forms_of(block[name]) for name in ("user_id", "item_id") if name in block.schema.names}


def merge_forms(found: Iterable[Forms]) -> Forms:
    """Adds descriptions up."""
    merged: Forms = {}
    for forms in found:
        for name, new in forms.items():
            old = merged.setdefault(name, forms_of(pa.array([], pa.string())))
            examples = sorted({*old["padded_examples"], *new["padded_examples"]}, key=str.encode)[:_EXAMPLES]
            counts = {each: old[each] + new[each] for each in ("rows", "padded", "whole_floats")}
            merged[name] = {**counts, "padded_examples": examples}
    return merged


class MergeForms(beam.CombineFn):
    """`merge_forms` as a combiner: in any order, in any grouping."""

    def create_accumulator(self) -> Forms:
        return {}

    def add_input(self, merged: Forms, forms: Forms) -> Forms:
        return merge_forms([merged, forms])

    def merge_accumulators(self, accumulators: Iterable[Forms]) -> Forms:
        return merge_forms(accumulators)

    def extract_output(self, merged: Forms) -> Forms:
        return {
            name: forms | {"padded_examples": [*map(shortened, forms["padded_examples"])]} for name, forms in merged.items()
        }


def odd_forms(dataset: str, forms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a line for each thing about a source's ids that somebody should look at."""
    lines = []
    for name, form in forms.items():
        if form["padded"]:
            lines.append(
                f"{form['padded']:,} of {counted(form['rows'], 'row')} of the {dataset} "
                f"{have(form['padded'])} white space around {'its' if form['padded'] == 1 else 'their'} {name}, such as "
                f"{', '.join(map(repr, form['padded_examples']))}: it is kept, and makes another id than the same text "
                "without it; remove it in the file if that is not meant"
            )
        if form["rows"] and form["whole_floats"] == form["rows"]:
            lines.append(
                f"every {name} of the {dataset} ends in .0: ids are text, and 1.0 is another id than 1; if they are whole "
                "numbers, write them as such (pandas makes integers with gaps into floats: astype('Int64') or str)"
            )
    return lines
