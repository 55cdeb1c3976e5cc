"""What ids look like, against Python's own strings."""

import re

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.ids import as_whole_number, as_whole_numbers
from transforms.ingest.id_forms import MergeForms, forms_of, forms_of_block, merge_forms, odd_forms
from transforms.ingest.values import as_text

IDS = st.lists(st.text(st.sampled_from(" \t\u00a0\u3000éab.01-中🙂"), min_size=1).filter(str.strip))


@given(IDS, st.integers(0, 3))
def test_forms_are_counted_as_python_sees_them(ids: list[str], start: int) -> None:
    found = forms_of(pa.array(ids, pa.string())[start:])
    kept = ids[start:]
    padded = [each for each in kept if each != each.strip()]
    assert found["rows"] == len(kept)
    assert found["padded"] == len(padded)
    assert found["padded_examples"] == sorted({*padded}, key=str.encode)[:3]
    assert found["whole_floats"] == sum(bool(re.fullmatch(r"-?[0-9]+\.0", each)) for each in kept)


@given(
    st.lists(
        st.none()
        | st.sampled_from(
            [
                "",
                "7",
                "7.0",
                "0.0",
                "-7.0",
                "-0.0",
                "1e+16",
                "-1.5e+17",
                "1e+19",
                "12e+16",
                "007.0",
                "7.00",
                ".0",
                "v7.0",
                "é.0",
            ]
        )
    ),
    st.integers(0, 2),
)
def test_whole_numbers_of_a_text_file_are_written_as_such(ids: list[str | None], start: int) -> None:
    whole = {"7.0": "7", "0.0": "0", "-7.0": "-7", "-0.0": "0", "1e+16": "1" + 16 * "0", "-1.5e+17": "-15" + 16 * "0"}
    found = as_whole_numbers(pa.array(ids, pa.string())[start:])
    assert found.to_pylist() == [whole.get(each, each) if each else each for each in ids[start:]]
    assert found.to_pylist() == [as_whole_number(each) if each else each for each in ids[start:]]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False).map(lambda number: float(round(number))) | st.floats(-9, 9)))
def test_text_of_floats_and_floats_give_the_same_ids(numbers: list[float]) -> None:
    kept = [each for each in numbers if abs(each) < 2.0**63]
    written = as_whole_numbers(pa.array([repr(each) for each in kept if each == round(each)], pa.string()))
    assert written.to_pylist() == as_text(pa.array([each for each in kept if each == round(each)], pa.float64())).to_pylist()


@given(st.lists(IDS, max_size=4))
def test_blocks_add_up_in_any_order(parts: list[list[str]]) -> None:
    blocks = [pa.RecordBatch.from_pydict({"user_id": pa.array(ids, pa.string())}) for ids in parts]
    combine = MergeForms()
    found = merge_forms(forms_of_block(block) for block in blocks)
    one = combine.create_accumulator()
    for block in blocks[::-1]:
        one = combine.add_input(one, forms_of_block(block))
    assert combine.merge_accumulators([combine.create_accumulator(), one]) == found
    assert found == ({"user_id": forms_of(pa.array([each for ids in parts for each in ids], pa.string()))} if parts else {})


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["1", "2.0"], []),
        (["1.0", "2.0"], ["every item_id of the items ends in .0: ids are text, and 1.0 is another id than 1"]),
        (["a", "a "], ["1 of 2 rows of the items has white space around its item_id, such as 'a ': it is kept"]),
        (["a ", "a "], ["2 of 2 rows of the items have white space around their item_id, such as 'a ': it is kept"]),
        (["a "], ["1 of 1 row of the items has white space around its item_id, such as 'a ': it is kept"]),
        ([], []),
    ],
)
def test_what_is_odd_is_said(ids: list[str], said: list[str]) -> None:
    block = pa.RecordBatch.from_pydict({"item_id": pa.array(ids, pa.string())})
    lines = odd_forms("items", MergeForms().extract_output(forms_of_block(block)))
    assert len(lines) == len(said)
    for line, start in zip(lines, said, strict=True):
        assert line.startswith(start)
