"""Block and allow lists against sets."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import InputError
from tests.made_data import ODD_IDS, write_csv
from transforms.item_lists import ItemLists, ids_of
from transforms.sources import ITEM_LIST_ROLES, Source, resolve_list

IDS = [*ODD_IDS, "a", "b", "c"]


def list_of(path: Path, ids: list[str]) -> Source:
    return resolve_list(str(write_csv(path, ["item_id"], [(each,) for each in ids])), ITEM_LIST_ROLES)


@pytest.mark.parametrize("block", [None, [], ["a", "7", "new\nline", "not in the catalogue"]])
@pytest.mark.parametrize("allow", [None, ["a", "b", "007", "emoji 🙂", "x" * 10_000]])
def test_lists_equal_sets(tmp_path: Path, block: list[str] | None, allow: list[str] | None) -> None:
    lists = ItemLists(
        list_of(tmp_path / "block.csv", block) if block else None,
        list_of(tmp_path / "allow.csv", allow) if allow else None,
    )
    expected = [each in (block or []) or (allow is not None and each not in allow) for each in IDS]
    assert lists.blocked(pa.array(IDS)).tolist() == expected
    assert len(lists.given) == bool(block) + bool(allow)


def test_integer_ids_are_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_id": [7, 42]}), tmp_path / "list.parquet")
    source = resolve_list(str(tmp_path / "list.parquet"), ITEM_LIST_ROLES, {"user_id": "ignored"})
    assert pa.concat_arrays(list(ids_of(source))).to_pylist() == ["7", "42"]


@pytest.mark.parametrize("row", [("", "x"), ("  ", "x"), ("a", "b", "c")])
def test_a_row_without_an_item_is_refused(tmp_path: Path, row: tuple[str, ...]) -> None:
    path = write_csv(tmp_path / "list.csv", ["item_id", "why"], [("a", "b"), row])
    with pytest.raises(InputError, match=r"list\.csv has a"):
        ItemLists(block=resolve_list(str(path), ITEM_LIST_ROLES)).blocked(pa.array(IDS))
