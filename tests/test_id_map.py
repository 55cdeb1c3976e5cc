"""Ids and codes against a dictionary."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.search.id_map import IdMap

CATALOGUES = st.dictionaries(st.text(max_size=5), st.integers(0, 1_000)).filter(
    lambda found: len(set(found.values())) == len(found)
)


def map_of(catalogue: dict[str, int]) -> IdMap:
    return IdMap(pa.array(list(catalogue), pa.string()), np.array(list(catalogue.values()), np.int64))


@given(CATALOGUES, st.lists(st.text(max_size=5)))
def test_codes_and_ids_equal_a_dictionarys(catalogue: dict[str, int], others: list[str]) -> None:
    id_map = map_of(catalogue)
    asked = [*others, *catalogue]
    assert id_map.codes_of(pa.array(asked, pa.string())).tolist() == [catalogue.get(each, -1) for each in asked]
    codes = np.array(list(catalogue.values()), np.int64)
    assert id_map.ids_of(codes).to_pylist() == list(catalogue)


@given(CATALOGUES, st.lists(st.tuples(st.lists(st.text(max_size=3)), st.lists(st.text(max_size=3)))), st.integers(0, 3))
def test_lists_join_the_columns_of_each_row(
    catalogue: dict[str, int], rows: list[tuple[list[str], list[str]]], skip: int
) -> None:
    columns = [pa.array([row[at] for row in rows], pa.list_(pa.string())).slice(min(skip, len(rows))) for at in (0, 1)]
    lists = map_of(catalogue).lists_of(*columns)
    expected = [[catalogue.get(each, -1) for each in first + second] for first, second in rows[skip:]]
    assert [lists.values[a:b].tolist() for a, b in zip(lists.offsets, lists.offsets[1:], strict=False)] == expected


def test_maps_of_different_catalogues_do_not_mix() -> None:
    with pytest.raises(ValueError, match="same code"):
        IdMap(pa.array(["a", "b"]), np.array([1, 1]))
    with pytest.raises(ValueError, match="same id"):
        IdMap(pa.array(["a", "a"]), np.array([1, 2]))
