"""Declaring features: what may be said, and what is said of mistakes."""

from typing import Any

import pytest

from schemas.errors import InputError
from transforms.train.features import Feature, declaration_of, feature_of, features_of, from_json, in_catalogue, to_json


def test_two_forms_of_one_declaration() -> None:
    assert features_of("genres=categories, year = number") == features_of("{genres: categories, year: {kind: number}}")


def test_every_option_reaches_its_feature() -> None:
    text = """{class: {kind: categories, separator: " ", missing: unknown, min_items: 3, max_values: 9},
               year: {kind: number, missing: [V, 0], buckets: 0}, title: text, shelf: category}"""
    assert features_of(text) == (
        Feature("class", "categories", ("unknown",), " ", 3, 9),
        Feature("year", "number", ("V", "0"), buckets=0),
        Feature("title", "text", min_items=10, buckets=4096),
        Feature("shelf", "category"),
    )


def test_a_column_may_have_an_equals_sign() -> None:
    assert features_of("a=b=category") == (Feature("a=b", "category"),)


def test_nothing_declared() -> None:
    assert features_of("") == features_of(" , ") == ()


def test_json_keeps_a_feature() -> None:
    for feature in features_of("{a: {kind: categories, separator: ', ', missing: [x]}, b: {kind: text, buckets: 7}}"):
        assert from_json(to_json(feature)) == feature
        assert feature_of(feature.column, declaration_of(feature)) == feature


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("genres", "--features takes column=kind pairs, got 'genres': write it as --features genres=categories"),
        ("=number", "--features takes column=kind pairs, got '=number': write it as --features genres=categories"),
        ("a=text,a=number", "--features names the column 'a' twice: keep one"),
        ("{a: [", "--features is not YAML (while parsing"),
        (
            "genres=Categorys",
            "the kind of feature 'genres' must be one of category, categories, number, text, got 'Categorys': "
            "did you mean category?",
        ),
        (
            "year=zzz",
            "the kind of feature 'year' must be one of category, categories, number, text, got 'zzz': change --features",
        ),
        (
            "{a: {separator: x}}",
            "the feature 'a' must be a kind or a mapping with one, got {'separator': 'x'}: "
            "write a: category, or a: {kind: category}",
        ),
        ("{a: 3}", "the feature 'a' must be a kind or a mapping with one, got 3: write a: category, or a: {kind: category}"),
        (
            "{a: {kind: number, bucket: 3}}",
            "number takes the options missing, buckets, got 'bucket' for feature 'a': did you mean buckets?",
        ),
        (
            "{a: {kind: category, separator: x}}",
            "category takes the options missing, min_items, max_values, got 'separator' for feature 'a': change --features",
        ),
        (
            "{a: {kind: text, buckets: many}}",
            "buckets of feature 'a' must be a whole number, got 'many': change --features",
        ),
        ("{a: {kind: text, buckets: true}}", "buckets of feature 'a' must be a whole number, got True: change --features"),
        ("{a: {kind: text, buckets: 1}}", "buckets of feature 'a' must be between 2 and 16777216, got 1: change --features"),
        (
            "{a: {kind: number, buckets: 1}}",
            "buckets of feature 'a' must be 0, or between 2 and 1000, got 1: change --features",
        ),
        (
            "{a: {kind: category, min_items: 0}}",
            "min_items of feature 'a' must be between 1 and 1000000000, got 0: change --features",
        ),
        (
            "{a: {kind: category, max_values: 0}}",
            "max_values of feature 'a' must be between 1 and 10000000, got 0: change --features",
        ),
        (
            "{a: {kind: categories, separator: ''}}",
            "the separator of feature 'a' must be at least one character, got '': write separator: ' ' for a space",
        ),
        ("{a: {kind: categories, separator: 3}}", "the separator of feature 'a' must be text, got 3: write separator: '|'"),
        (
            "{a: {kind: number, missing: [[1]]}}",
            "missing of feature 'a' must be a list of values, got [[1]]: write missing: [unknown]",
        ),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        features_of(text)
    assert str(error.value).startswith(message)


def items_with(*others: str) -> dict[str, Any]:
    return {
        "columns": {"item_id": "item_id", "title": "movie_title"},
        "other_columns": dict.fromkeys(others, "string"),
    }


def test_the_sources_names_are_known() -> None:
    declared = features_of("class=categories,movie_title=text")
    found = in_catalogue(declared, items_with("class"))
    assert [(feature.column, feature.kind) for feature in found] == [("class", "categories"), ("title", "text")]


@pytest.mark.parametrize(
    ("text", "items", "message"),
    [
        (
            "genre=category",
            items_with("genres"),
            "the items have no column 'genre' for a feature, they have movie_title, genres: did you mean genres?",
        ),
        (
            "movie_titel=text",
            items_with("genres"),
            "the items have no column 'movie_titel' for a feature, they have movie_title, genres: did you mean movie_title?",
        ),
        (
            "Genres=category",
            items_with("genres"),
            "the items have no column 'Genres' for a feature, they have movie_title, genres: did you mean genres?",
        ),
        (
            "item_id=text",
            {"columns": {"item_id": "item_id"}, "other_columns": {}},
            "the items have no column 'item_id' for a feature, they have none: change --features",
        ),
        (
            "title=text,movie_title=text",
            items_with(),
            "--features names the column 'title' twice, also as 'movie_title': keep one",
        ),
        ("year=number", None, "the feature 'year' needs items: give --items, or use --item_tower id"),
    ],
)
def test_a_column_that_there_is_not(text: str, items: dict[str, Any] | None, message: str) -> None:
    with pytest.raises(InputError) as error:
        in_catalogue(features_of(text), items)
    assert str(error.value) == message


def test_a_feature_may_be_declared_in_python() -> None:
    arguments: dict[str, Any] = {"kind": "text", "buckets": 16}
    assert feature_of("title", arguments) == Feature("title", "text", min_items=10, buckets=16)
