"""Encoding features: against plain Python on small catalogues, in blocks as in one, and what bad columns do."""

import math
import re
import unicodedata
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.blocks import Block
from schemas.errors import InputError
from transforms.train import encode_features
from transforms.train.encode_features import FeatureEncoder, encode_rated, encoder_from_json
from transforms.train.features import features_of
from transforms.train.fit_features import FittedFeatures, fit_features


def block_of(columns: dict[str, Any], counts: list[int] | None = None) -> Block:
    arrays = {name: value if isinstance(value, pa.Array) else pa.array(value) for name, value in columns.items()}
    length = len(next(iter(arrays.values())))
    ids = pa.array([f"i{index:06d}" for index in range(length)])
    return pa.RecordBatch.from_pydict({"item_id": ids, "train_count": pa.array(counts or [1] * length, pa.int64()), **arrays})


def fit(declared: str, columns: dict[str, Any], counts: list[int] | None = None) -> FittedFeatures:
    return fit_features([block_of(columns, counts)], features_of(declared))


def bags_of(encoder: FeatureEncoder, block: Block) -> list[list[tuple[int, float]]]:
    """Returns each item's (code, weight) pairs."""
    codes, weights, lengths = encoder.encode(block)
    assert (codes.dtype, weights.dtype, lengths.dtype) == (np.int32, np.float32, np.int32)
    ends = np.cumsum(lengths)
    assert len(codes) == len(weights) == ends[-1]
    pairs = list(zip(codes.tolist(), weights.tolist(), strict=True))
    return [pairs[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def test_a_category_is_one_code_for_each_value_that_items_share() -> None:
    shelf = ["b", "a", None, "b", " a ", "", "rare", "c", "c"]
    found = fit("shelf=category", {"shelf": shelf})
    # a, b, c in the order of their bytes; what only one item has is not learned.
    assert bags_of(found.encoder, block_of({"shelf": shelf})) == [
        [] if code is None else [(code, 1.0)] for code in [1, 0, None, 1, 0, None, None, 2, 2]
    ]
    assert found.report == {"shelf": {"kind": "category", "items_with_value": 7, "values": 4, "codes": 3, "warning": None}}


@pytest.mark.parametrize(
    "genres",
    [
        pa.array(["x|y", "y| z |y", None, "", "z|", "x"]),
        pa.array([["x", "y"], ["y", "z", "y"], None, [], ["z", None, ""], ["x"]]),
        pa.array([["x", "y"], ["y", "z", "y"], None, [], ["z", None, ""], ["x"]], pa.large_list(pa.large_string())),
        pa.array(
            [["x", "y"], ["y", "z", "y"], None, [], ["z", None, ""], ["x"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))
        ),
    ],
    ids=["text", "lists", "large lists", "dictionaries"],
)
def test_categories_share_a_weight_of_one(genres: pa.Array) -> None:
    found = fit("genres=categories", {"genres": genres})
    half = [(0, 0.5), (1, 0.5)], [(1, 0.5), (2, 0.5)]
    assert bags_of(found.encoder, block_of({"genres": genres})) == [*half, [], [], [(2, 1.0)], [(0, 1.0)]]
    assert found.report["genres"]["warning"] is None


def test_lists_of_numbers_are_categories_too() -> None:
    column = pa.array([[1, 2], [2], [1], [3]], pa.list_(pa.int16()))
    encoder = fit("tags=categories", {"tags": column}).encoder
    assert bags_of(encoder, block_of({"tags": column})) == [[(0, 0.5), (1, 0.5)], [(1, 1.0)], [(0, 1.0)], []]


def test_other_separators_are_text_and_no_pattern() -> None:
    encoder = fit("{genres: {kind: categories, separator: .}}", {"genres": ["a.b", "b", "a", "c"]}).encoder
    assert bags_of(encoder, block_of({"genres": ["a.b", "ab"]})) == [[(0, 0.5), (1, 0.5)], []]


def test_text_without_its_separator_is_warned_of() -> None:
    report = fit("genres=categories", {"genres": ["a b", "a b", "c", "c"]}).report
    assert report["genres"]["warning"] == ("no text has the separator '|' in it, so each counts as one value: see separator")
    assert fit("genres=categories", {"genres": [["a"], ["a"], ["b"]]}).report["genres"]["warning"] is None


def test_missing_values_may_be_named() -> None:
    declared = "{shelf: {kind: category, missing: [unknown, 0]}}"
    encoder = fit(declared, {"shelf": ["unknown", "unknown", "0", "0", "a", "a", "b"]}).encoder
    assert bags_of(encoder, block_of({"shelf": ["unknown", "0", "a"]})) == [[], [], [(0, 1.0)]]


TITLES = ["The CAT", "the dog's café!", "cat, Dog; CAFE\u0301", None, "…", "dog 7", "\uff17 cats"]


def words_of(title: str | None) -> list[str]:
    text = unicodedata.normalize("NFKC", title or "").lower()
    words = re.split(r"[\W_]+", text)
    return list(dict.fromkeys(word for word in words if word))


def test_text_is_its_words_without_case_in_any_spelling() -> None:
    encoder = fit("{title: {kind: text, buckets: 65536, min_items: 2}}", {"title": TITLES}).encoder
    counts = Counter(word for title in TITLES for word in words_of(title))
    learned = {word for word, count in counts.items() if count >= 2}
    assert learned == {"the", "cat", "dog", "café", "7"}
    assert encoder.num_codes == len(learned)
    bags = bags_of(encoder, block_of({"title": TITLES}))
    code_of = {word: bags_of(encoder, block_of({"title": [word]}))[0][0][0] for word in learned}
    assert len(set(code_of.values())) == len(learned)
    for title, bag in zip(TITLES, bags, strict=True):
        words = [word for word in words_of(title) if word in learned]
        assert bag == [(code_of[word], pytest.approx(1 / len(words))) for word in words]


def test_a_words_hash_never_changes() -> None:
    """Towers on disk depend on it."""
    encoder = fit("{title: {kind: text, buckets: 4096, min_items: 1}}", {"title": ["star wars", "Größe"]}).encoder
    assert encoder.to_json()[0]["hashes"] == HASHES


HASHES = [377, 614, 3354]


def test_few_buckets_make_words_meet() -> None:
    words = [f"w{index}" for index in range(50)]
    encoder = fit("{title: {kind: text, buckets: 3, min_items: 1}}", {"title": [*words, "w0"]}).encoder
    assert encoder.num_codes == 3
    assert sum(weight for _, weight in bags_of(encoder, block_of({"title": [" ".join(words)]}))[0]) == pytest.approx(1)


@pytest.mark.parametrize(
    "numbers",
    [
        pa.array([1.0, 3.0, None, math.nan, 5.0, 7.0]),
        pa.array(["1", " 3.0 ", "", None, "+5", "7e0"]),
        pa.array([1, 3, None, None, 5, 7], pa.int16()),
        pa.array([1, 3, None, None, 5, 7], pa.decimal128(5, 2)),
    ],
    ids=["floats", "text", "integers", "decimals"],
)
def test_numbers_are_standardised(numbers: pa.Array) -> None:
    encoder = fit("{price: {kind: number, buckets: 0}}", {"price": numbers}).encoder
    expected = (np.array([1, 3, 5, 7]) - 4) / math.sqrt(5)
    bags = bags_of(encoder, block_of({"price": numbers}))
    assert [len(bag) for bag in bags] == [1, 1, 0, 0, 1, 1]
    assert [pair for bag in bags for pair in bag] == [(0, pytest.approx(weight)) for weight in expected]


@pytest.mark.parametrize("numbers", [[1e-320, 2e-320, 3e-320], [1e200, -1e200, 3e200]])
def test_numbers_that_cannot_be_standardised_are_left_out(numbers: list[float]) -> None:
    with pytest.raises(InputError, match="x is left out: its spread is no finite number above 0"):
        fit("{x: {kind: number, buckets: 0}}", {"x": numbers})


def test_a_number_far_off_counts_as_four_deviations() -> None:
    encoder = fit("{price: {kind: number, buckets: 0}}", {"price": [0.0, 2.0]}).encoder
    assert bags_of(encoder, block_of({"price": [1e9, -1e9, 1.0]})) == [[(0, 4.0)], [(0, -4.0)], [(0, 0.0)]]


def test_numbers_fall_into_buckets_of_equal_size() -> None:
    numbers = np.random.default_rng(0).permutation(1_000).astype(float)
    encoder = fit("price=number", {"price": numbers}).encoder
    codes = [bag[0] for bag in bags_of(encoder, block_of({"price": numbers}))]
    assert [weight for _, weight in codes] == [1.0] * 1_000
    assert all(abs(count - 100) <= 1 for count in Counter(code for code, _ in codes).values())
    in_order = [code for _, (code, _) in sorted(zip(numbers, codes, strict=True))]
    assert in_order == sorted(in_order)
    outside = bags_of(encoder, block_of({"price": [-5.0, 5_000.0]}))
    assert outside == [[(0, 1.0)], [(9, 1.0)]]


@pytest.mark.parametrize("numbers", [[0] * 99 + [7], [0] * 50 + [1] * 50, list(range(5)) * 3, [0, 7]])
def test_every_bucket_holds_some_item(numbers: list[int]) -> None:
    encoder = fit("price=number", {"price": numbers}).encoder
    codes = {bag[0][0] for bag in bags_of(encoder, block_of({"price": numbers}))}
    assert codes == set(range(encoder.num_codes))
    assert len(codes) == min(10, len(set(numbers)))


def test_dates_are_numbers() -> None:
    days = pa.array([0, 1, None, 3], pa.date32())
    encoder = fit("{since: {kind: number, buckets: 0}}", {"since": days}).encoder
    weights = [bag[0][1] if bag else None for bag in bags_of(encoder, block_of({"since": days}))]
    spread = np.std([0, 1, 3])
    assert weights == [pytest.approx(-4 / 3 / spread), pytest.approx(-1 / 3 / spread), None, pytest.approx(5 / 3 / spread)]


def test_codes_of_features_follow_one_another() -> None:
    columns = {"shelf": ["a", "b", "a", "b"], "price": [1, 2, 3, 4], "title": ["x y", "x", None, "y"]}
    encoder = fit("{shelf: category, price: {kind: number, buckets: 2}, title: {kind: text, min_items: 2}}", columns).encoder
    assert encoder.columns == ["shelf", "price", "title"]
    assert encoder.num_codes == 6
    x, y = (bags_of(encoder, block_of({**columns, "title": [word] * 4}))[0][-1][0] for word in "xy")
    assert {x, y} == {4, 5}
    assert bags_of(encoder, block_of(columns)) == [
        [(0, 1), (2, 1), (x, 0.5), (y, 0.5)],
        [(1, 1), (3, 1), (x, 1)],
        [(0, 1), (3, 1)],
        [(1, 1), (3, 1), (y, 1)],
    ]


def test_only_rated_items_teach_values() -> None:
    columns = {"shelf": ["a", "a", "b", "b", "c"], "price": [1.0, 2.0, 1e6, 1e6, 3.0]}
    counts = [1, 9, 0, 0, 1]
    found = fit("{shelf: {kind: category}, price: {kind: number, buckets: 0}}", columns, counts)
    assert found.encoder.num_codes == 2
    assert found.report["shelf"] | {"warning": ""} == {
        "kind": "category",
        "items_with_value": 3,
        "values": 2,
        "codes": 1,
        "warning": "",
    }
    # An unrated item is encoded by what the rated ones taught.
    bags = bags_of(found.encoder, block_of(columns))
    assert bags[2] == [(1, 4.0)]
    assert bags[0] == [(0, 1.0), (1, pytest.approx(-1 / math.sqrt(2 / 3)))]


def test_values_beyond_the_bound_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_features, "MAX_VALUES_AN_ITEM", 3)
    column = [["a", "b", "c", "d"], ["d", "b", "d", "a", "c"], ["c"]]
    encoder = fit("{tags: {kind: categories, min_items: 1}}", {"tags": column}).encoder
    third = pytest.approx(1 / 3)
    assert bags_of(encoder, block_of({"tags": column})) == [
        [(0, third), (1, third), (2, third)],
        [(3, third), (1, third), (0, third)],
        [(2, 1.0)],
    ]


COLUMNS = st.lists(
    st.tuples(
        st.one_of(st.none(), st.text(alphabet="ab c|", max_size=6)),
        st.one_of(st.none(), st.floats(-100, 100), st.just(math.nan)),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=30,
)


@given(rows=COLUMNS, cut=st.integers(0, 30))
def test_blocks_change_nothing(rows: list[tuple], cut: int) -> None:
    tags, prices, counts = (list(each) for each in zip(*rows, strict=True))
    columns = {"tags": pa.array(tags, pa.string()), "price": pa.array(prices, pa.float64())}
    block = block_of(columns, counts)
    declared = features_of("{tags: {kind: categories, min_items: 1}, price: {kind: number, buckets: 3}}")
    pieces = [piece for piece in (block.slice(0, cut), block.slice(cut)) if piece.num_rows]
    try:
        whole = fit_features([block], declared)
    except InputError:
        with pytest.raises(InputError, match="no feature can tell items apart"):
            fit_features(pieces, declared)
        return
    parts = fit_features(pieces, declared)
    assert parts.encoder.to_json() == whole.encoder.to_json()
    assert parts.report == whole.report
    together = whole.encoder.encode(block)
    apart = [whole.encoder.encode(piece) for piece in pieces]
    for one, several in zip(together, zip(*apart, strict=True), strict=True):
        np.testing.assert_array_equal(one, np.concatenate(several))
    again = encoder_from_json(whole.encoder.to_json()).encode(block)
    for one, other in zip(together, again, strict=True):
        np.testing.assert_array_equal(one, other)
    rated = block.filter(pa.array(np.array(counts) > 0))
    for one, other in zip(encode_rated(pieces, whole.encoder, rated["item_id"]), whole.encoder.encode(rated), strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_catalogue_is_refused() -> None:
    block = block_of({"shelf": ["a", "a", "b"]})
    encoder = fit_features([block], features_of("shelf=category")).encoder
    with pytest.raises(RuntimeError, match="rated items are not those of the training interactions"):
        encode_rated([block], encoder, pa.array(["i000000", "i000001"]))


@pytest.mark.parametrize(
    ("declared", "column", "warning"),
    [
        ("x=category", ["a"] * 4, "left out: every rated item has the same value"),
        ("x=categories", ["a|b", "b|a", "a|b", "b|a|a"], "left out: every rated item has the same value"),
        ("x=text", ["a b", "b a", "A B", "b, a"], "left out: every rated item has the same words"),
        ("x=number", [3.0, 3.0, None, 3.0], "left out: all its values are the same"),
        ("x=category", pa.nulls(4), "left out: no rated item has a value"),
        ("x=categories", pa.nulls(4, pa.list_(pa.string())), "left out: no rated item has a value"),
        ("x=text", ["", " ", None, "?!"], "left out: no rated item has a value"),
        ("x=number", pa.nulls(4, pa.float32()), "left out: no rated item has a value"),
        ("x=number", pa.nulls(4, pa.string()), "left out: no rated item has a value"),
        ("x=category", ["a", "b", "c", "d"], "left out: none of its values is shared by 2 rated items"),
        ("x=text", ["a", "b", "c", "d"], "left out: none of its words is shared by 10 rated items"),
    ],
)
def test_a_column_that_says_nothing_is_left_out(declared: str, column: Any, warning: str) -> None:
    good = {"shelf": ["p", "p", "q", "q"]}
    found = fit(f"{declared},shelf=category", {"x": column, **good})
    assert found.report["x"]["warning"] == warning
    assert found.report["x"]["codes"] == 0
    assert found.encoder.columns == ["shelf"]
    with pytest.raises(InputError) as error:
        fit(declared, {"x": column})
    assert str(error.value) == (f"no feature can tell items apart (x is {warning}): declare others, or use --item_tower id")


def test_a_value_or_none_is_not_constant() -> None:
    assert fit("x=category", {"x": ["a", "a", None]}).encoder.num_codes == 1


def test_many_categories_are_cut_to_the_most_frequent() -> None:
    values = [f"v{index // 2:06d}" for index in range(200_000)] + ["v000003", "v099999"]
    found = fit("{x: {kind: category, max_values: 50000}}", {"x": values})
    assert found.report["x"] == {
        "kind": "category",
        "items_with_value": 200_002,
        "values": 100_000,
        "codes": 50_000,
        "warning": "has 100,000 values, of which the 50,000 most frequent are learned: see max_values",
    }
    learned = found.encoder.to_json()[0]["values"]
    # Those that three items have, then, of those that two have, the first.
    assert learned == [*(f"v{index:06d}" for index in range(49_999)), "v099999"]
    assert bags_of(found.encoder, block_of({"x": ["v099998", "v099999"]})) == [[], [(49_999, 1.0)]]


def test_text_in_a_number_is_named() -> None:
    years = ["1995", "V", None, "unkonwn", "V", "1996"]
    message = (
        "the feature 'year' must be finite numbers, got 'V', 'unkonwn' (3 of 6 items): if that means no value, "
        "declare missing: ['V', 'unkonwn'], or else kind: category"
    )
    for counts in ([1] * 6, [1, 0, 0, 0, 0, 1]):  # Also where nobody rated those items.
        with pytest.raises(InputError) as error:
            fit("year=number", {"year": years}, counts)
        assert str(error.value) == message
    declared = "{year: {kind: number, missing: ['V', 'unkonwn']}}"
    assert bags_of(fit(declared, {"year": years}).encoder, block_of({"year": years[:2]})) == [[(0, 1.0)], []]


@pytest.mark.parametrize("bad", ["nan", "inf", "1,5", "0x10", "1e999", "--1", "12 km"])
def test_what_is_no_number(bad: str) -> None:
    with pytest.raises(InputError, match=f"must be finite numbers, got {re.escape(repr(bad))} "):
        fit("x=number", {"x": ["1", "2", bad]})


def test_infinity_is_no_number() -> None:
    with pytest.raises(InputError, match="must be finite numbers, got 'inf' "):
        fit("x=number", {"x": [1.0, 2.0, math.inf]})


def test_an_encoder_refuses_what_its_fit_would_have() -> None:
    encoder = fit("year=number", {"year": ["1995", "1996"]}).encoder
    with pytest.raises(InputError, match="the feature 'year' must be finite numbers, got 'V'"):
        encoder.encode(block_of({"year": ["V"]}))
    with pytest.raises(InputError, match="the items lack the column 'year', which their tower was trained on: add it"):
        encoder.encode(block_of({"other": ["V"]}))


@pytest.mark.parametrize(
    ("declared", "column", "message"),
    [
        (
            "x=category",
            pa.array([["a"], ["b"]]),
            "the feature 'x' has lists of values, a category has one: declare it as categories",
        ),
        (
            "x=category",
            pa.array([{"a": 1}]),
            "the feature 'x' has values of type struct<a: int64>, which are no category: leave it out of --features",
        ),
        (
            "x=number",
            pa.array([[1.0], [2.0]]),
            "the feature 'x' has values of type list<item: double>, which are no number: leave it out of --features",
        ),
        (
            "x=text",
            pa.array([b"\xff\xfe"]),
            "the feature 'x' has values of type binary, which are no text: leave it out of --features",
        ),
    ],
)
def test_types_that_will_not_do(declared: str, column: pa.Array, message: str) -> None:
    with pytest.raises(InputError) as error:
        fit(declared, {"x": column})
    assert str(error.value) == message


def test_no_rows() -> None:
    columns: dict[str, Any] = {"shelf": ["a", "a", "b"], "price": [1, 2, 3], "title": ["x", "x", "y"]}
    encoder = fit("{shelf: category, price: number, title: {kind: text, min_items: 2}}", columns).encoder
    codes, weights, lengths = encoder.encode(block_of(columns).slice(0, 0))
    assert len(codes) == len(weights) == len(lengths) == 0


def test_blocks_without_a_rated_item_change_nothing() -> None:
    declared = "shelf=category,genres=categories,title=text,pages=number"
    columns = {"shelf": ["a", "b"] * 6, "genres": ["x|y", "y"] * 6, "title": ["one two", "two"] * 6, "pages": list(range(12))}
    block = block_of(columns)
    unrated = block_of(columns, [0] * 12)
    alone, among = (fit_features(blocks, features_of(declared)) for blocks in ([block], [block.slice(0, 0), block, unrated]))
    assert among.report == alone.report
    assert among.encoder.to_json() == alone.encoder.to_json()
    ids = block["item_id"]
    assert [each.tolist() for each in encode_rated([unrated, block, unrated.slice(0, 0)], alone.encoder, ids)] == [
        each.tolist() for each in encode_rated([block], alone.encoder, ids)
    ]
    assert [each.tolist() for each in alone.encoder.encode(block.slice(0, 0))] == [[], [], []]
