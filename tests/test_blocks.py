"""Blocks lose no row: what is too much for one is refused, and how much text there is can be told beforehand."""

import mmap

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.blocks import FEWER_ITEMS, FEWER_USERS, MAX_SPAN, in_blocks, joined, one_block, text_lengths
from schemas.errors import InputError

GIB = 1 << 30


@pytest.fixture(scope="module")
def text() -> pa.Array:
    """Returns one text of 1 GiB that takes no memory, since nobody reads it."""
    data = pa.py_buffer(mmap.mmap(-1, GIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    return pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, GIB], np.int32)), data)


def nested(text: pa.Array) -> dict[str, pa.Array]:
    offsets = pa.array([0, 1], pa.int32())
    pairs = pa.StructArray.from_arrays([text, pa.array([1.0])], ["item_id", "score"])
    return {
        "text": text,
        "lists": pa.ListArray.from_arrays(offsets, text),
        "lists of pairs": pa.ListArray.from_arrays(offsets, pairs),
        "large lists": pa.LargeListArray.from_arrays(offsets.cast(pa.int64()), text),
        "pairs": pa.FixedSizeListArray.from_arrays(text, 1),
    }


@pytest.mark.parametrize("kind", ["text", "lists", "lists of pairs", "large lists", "pairs"])
def test_more_text_than_a_block_holds_is_refused_and_not_cut(text: pa.Array, kind: str) -> None:
    block = pa.record_batch({"user_id": pa.array(["u"]), "values": nested(text)[kind]})
    with pytest.raises(InputError, match=f"values comes to 3,221,225,472 bytes .* 2,147,483,647: {FEWER_USERS}"):
        one_block([block] * 3, block.schema, FEWER_USERS)
    with pytest.raises(InputError, match=f"values comes to 2,147,483,648 bytes .*: {FEWER_ITEMS}"):
        joined([block["values"]] * 2, "values", FEWER_ITEMS)


def test_only_the_text_of_the_rows_counts(text: pa.Array) -> None:
    """Slices share the text of the whole."""
    for column in nested(text).values():
        block = pa.record_batch({"values": column}).slice(0, 0)
        assert one_block([block] * 3, block.schema).num_rows == 0
    texts = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, GIB - 1, GIB], np.int32)), text.buffers()[2])
    block = pa.record_batch({"values": texts}).slice(1)
    assert one_block([block] * 3, block.schema)["values"].to_pylist() == ["\0"] * 3
    assert joined([block["values"]] * 3, "values").to_pylist() == ["\0"] * 3


def test_a_block_is_as_long_as_arrow_allows() -> None:
    assert MAX_SPAN == 2**31 - 1


VALUES = st.lists(st.tuples(st.text(max_size=5) | st.none(), st.lists(st.text(max_size=5) | st.none()) | st.none()))


@given(VALUES, st.integers(0, 5), st.integers(1, 4))
def test_rows_survive_and_their_text_is_counted(rows: list, start: int, size: int) -> None:
    texts, lists = ([row[place] for row in rows] for place in (0, 1))
    table = pa.table(
        {
            "text": pa.array(texts, pa.string()),
            "lists": pa.array(lists, pa.list_(pa.string())),
            "large": pa.array(texts, pa.large_string()),
            "pairs": pa.array(
                [{"item_id": each, "score": 1.0} for each in texts], pa.struct({"item_id": "str", "score": "f4"})
            ),
            "number": pa.array(range(len(rows)), pa.int64()),
        }
    ).slice(start)
    blocks = list(in_blocks(table, size))
    block = one_block(blocks, table.schema)
    assert pa.Table.from_batches([block]) == table.combine_chunks()
    length = [len((each or "").encode()) for each in texts][start:]
    inside = [sum(len((each or "").encode()) for each in row or ()) for row in lists][start:]
    expected = {"text": length, "lists": inside, "large": length, "pairs": length, "number": [0] * len(length)}
    assert {name: text_lengths(block[name]).tolist() for name in block.schema.names} == expected
