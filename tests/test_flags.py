"""Settings say which flag sets a field and what it may be; the parser and the checks are made from that."""

from dataclasses import dataclass

import pytest

from schemas.errors import InputError
from schemas.flags import ABOVE_0, NOT_NEGATIVE, Flag, between, check_fields, flag, flags_of, one_of

SIZES = between(1, 9)


@dataclass(frozen=True)
class Shelf:
    boards: int = flag(4, rule=SIZES, help="how many")
    wood: str = flag("oak", name="shelf_wood", rule=one_of("oak", "ash"), help="of what")
    height: float | None = flag(None, rule=ABOVE_0, called="the height", help="how high")
    gap: float = flag(1.5, rule=NOT_NEGATIVE, help="between boards")
    marks: tuple[str, ...] = flag((), unset="", help="what is written on it")
    painted: bool = flag(False, help="whether")
    owner: str = "nobody"

    def __post_init__(self) -> None:
        check_fields(self)


def test_a_flag_is_declared_beside_its_field() -> None:
    flags = flags_of(Shelf)
    assert list(flags) == ["boards", "wood", "height", "gap", "marks", "painted"]
    assert flags["boards"] == Flag("boards", "how many", int, 4, SIZES, "boards")
    assert [(each.name, each.kind, each.default) for each in flags.values()] == [
        ("boards", int, 4),
        ("shelf_wood", str, "oak"),
        ("height", float, None),
        ("gap", float, 1.5),
        ("marks", str, ""),
        ("painted", bool, False),
    ]
    assert flags_of(Shelf()) == flags


@pytest.mark.parametrize("fine", [{}, {"boards": 1}, {"boards": 9}, {"gap": 0.0}, {"height": 0.1}, {"owner": ""}])
def test_values_within_the_rules_are_taken(fine: dict) -> None:
    assert Shelf(**fine) == Shelf(**fine)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"boards": 0}, "boards must be between 1 and 9, got 0: change --boards"),
        ({"boards": 5_000_000}, "boards must be between 1 and 9, got 5000000: change --boards"),
        ({"wood": "tin"}, "shelf_wood must be one of oak, ash, got 'tin': change --shelf_wood"),
        ({"height": 0.0}, "the height must be a number above 0, got 0: change --height"),
        ({"height": float("inf")}, "the height must be a number above 0, got inf: change --height"),
        ({"gap": -0.25}, "gap must be a number of at least 0, got -0.25: change --gap"),
        ({"gap": float("nan")}, "gap must be a number of at least 0, got nan: change --gap"),
        ({"gap": -1.0, "boards": 10}, "boards must be between 1 and 9, got 10: change --boards"),
    ],
)
def test_a_value_that_breaks_a_rule_is_named(wrong: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        Shelf(**wrong)
    assert str(error.value) == message
