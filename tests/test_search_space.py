"""Which trainings a sweep tries: lists, grids, draws, and every mistake in them."""

from dataclasses import replace
from typing import Any

import pytest
import yaml

from schemas.errors import InputError
from transforms.train.search_space import SPACE, trials_of, varied_settings
from transforms.train.settings import TrainingSettings

BASE = TrainingSettings(dim=48, l2=0.3, seed=5)


def asked(text: str, num_trials: int | None = None) -> list[TrainingSettings]:
    return trials_of(yaml.safe_load(text), BASE, num_trials, "t.yaml")


def test_a_list_is_tried_as_it_stands_and_what_is_not_named_is_as_the_flags_say() -> None:
    assert asked("[{dim: 32}, {dim: 64, l2: 0}, {learning_rate: 1e-3, user_tower: history}]") == [
        replace(BASE, dim=32),
        replace(BASE, dim=64, l2=0.0),
        replace(BASE, learning_rate=0.001, user_tower="history"),
    ]


def test_a_grid_is_every_combination_and_nothing_is_tried_twice() -> None:
    made = asked("{dim: [32, 64, 32], l2: [0.1, 0.2], batch_size: 256}")
    assert [(each.dim, each.l2, each.batch_size) for each in made] == [
        (32, 0.1, 256),
        (32, 0.2, 256),
        (64, 0.1, 256),
        (64, 0.2, 256),
    ]
    assert asked("[{dim: 32}, {dim: 64}, {dim: 32}]") == [replace(BASE, dim=32), replace(BASE, dim=64)]


def test_draws_begin_with_the_flags_own_settings_and_more_draws_begin_with_fewer() -> None:
    few, many = (trials_of(SPACE, BASE, number, "space") for number in (5, 30))
    assert few[0] == BASE
    assert many[:5] == few
    assert len(set(many)) == 30
    assert few != trials_of(SPACE, replace(BASE, seed=6), 5, "space")
    for each in many[1:]:
        assert 0.003 <= each.learning_rate <= 0.03
        assert each.batch_size in (256, 512, 1024)
        assert 0.02 <= each.l2_weight <= 0.5
        assert each.dim in (32, 64, 128)
        assert float(f"{each.l2_weight:.3g}") == each.l2_weight
    # Half of the draws lie below the geometric mean of a logarithmic range, not below its middle.
    below = sum(each.learning_rate < 0.003 * 10**0.5 for each in trials_of(SPACE, BASE, 200, "space"))
    assert 75 <= below <= 125


def test_a_small_space_is_drawn_empty_and_whole_numbers_stay_whole() -> None:
    assert sorted(each.dimensions for each in asked("{dim: [48, 49, 50]}", 10)) == [48, 49, 50]
    drawn = {each.dim for each in asked("{dim: {low: 1, high: 4}}", 50)}
    assert drawn == {1, 2, 3, 4, 48}
    assert all(type(each) is int for each in drawn)


def test_every_setting_of_training_is_known_but_those_that_all_share() -> None:
    assert {"user_tower", "dim", "learning_rate", "batch_size", "l2", "epochs", "candidates"} <= set(varied_settings())
    assert not {"seed", "validation_fraction", "include_validation"} & set(varied_settings())


@pytest.mark.parametrize(
    ("text", "num_trials", "words"),
    [
        ("", None, "t.yaml is empty: list trials, or settings with the values to try"),
        ("{}", None, "t.yaml is empty"),
        ("[]", 3, "t.yaml is empty"),
        ("word", None, "t.yaml must be a list of trials or a mapping of settings to values, got 'word'"),
        ("[{dim: 32}, 5]", None, "trial 2 of t.yaml must be a mapping of settings to values, got 5"),
        ("[{dim: 32}]", 4, "t.yaml is a list of 1 trials, and --num_trials draws from a space"),
        ("[{dim: 32}, {dims: 32}]", None, "trial 2 of t.yaml has an unknown setting 'dims': did you mean dim?"),
        ("{lerning_rate: [1]}", None, "t.yaml has an unknown setting 'lerning_rate': did you mean learning_rate?"),
        ("{colour: [red]}", None, "t.yaml has an unknown setting 'colour': the settings are user_tower, "),
        ("{1: [2]}", None, "t.yaml has an unknown setting '1'"),
        ("[{seed: 3}]", None, "trial 1 of t.yaml has the setting seed, but all trials are judged on the same validation slice"),
        ("{validation_fraction: [0.1, 0.2]}", None, "t.yaml has the setting validation_fraction, but all trials"),
        ("[{include_validation: true}]", None, "must not learn from it: leave it out"),
        ("{dim: []}", None, "dim in t.yaml has no values: list some, or leave it out"),
        ("[{dim: 32}, {dim: 0}]", None, "trial 2 of t.yaml: dim must be between 1 and 4096, got 0: change --dim"),
        ("{dim: [8, 16], l2: [0.1, -1]}", None, "trial 2 of t.yaml: l2 must be a number of at least 0, got -1"),
        ("[{user_tower: towr}]", None, "trial 1 of t.yaml: user_tower must be one of id, "),
        ("[{dim: 32.5}]", None, "dim in trial 1 of t.yaml must be a whole number, got 32.5: change it"),
        ("[{dim: true}]", None, "dim in trial 1 of t.yaml must be a whole number, got True"),
        ("[{l2: much}]", None, "l2 in trial 1 of t.yaml must be a number, got 'much'"),
        ("[{l2: [0.1, 0.2]}]", None, "l2 in trial 1 of t.yaml must be a number, got [0.1, 0.2]"),
        ("[{l2: null}]", None, "l2 in trial 1 of t.yaml must be a number, got None"),
        ("[{user_tower: 5}]", None, "user_tower in trial 1 of t.yaml must be text, got 5"),
        ("{l2: {low: 1, high: 2}}", None, "l2 in t.yaml is a range, and a grid needs values: list them, or draw from it with"),
        ("{user_tower: {low: 1, high: 2}}", 2, "user_tower in t.yaml cannot be a range, since it is no number"),
        ("{l2: {low: 1}}", 2, "the range of l2 in t.yaml takes low, high and log, got {'low': 1}: write it as"),
        ("{l2: {low: 1, hig: 2}}", 2, "the range of l2 in t.yaml takes low, high and log"),
        ("{l2: {low: 2, high: 1}}", 2, "the range of l2 in t.yaml must go from low to high, got 2 to 1: swap its ends"),
        ("{l2: {low: 0, high: 1, log: true}}", 2, "a logarithmic range must begin above 0, and that of l2 in t.yaml does at 0"),
        ("{l2: {low: 1, high: 2, log: maybe}}", 2, "log in the range of l2 in t.yaml must be true or false, got 'maybe'"),
    ],
)
def test_mistakes_name_the_trial_the_setting_and_the_repair(text: str, num_trials: int | None, words: str) -> None:
    with pytest.raises(InputError) as raised:
        asked(text, num_trials)
    assert words in str(raised.value)


@pytest.mark.parametrize("declared", [{"l2": float("nan")}, {"learning_rate": float("inf")}])
def test_numbers_that_are_none_are_refused(declared: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"trial 1 of t.yaml: .* must be a number"):
        trials_of([declared], BASE, None, "t.yaml")
