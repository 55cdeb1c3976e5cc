"""Says which trainings a sweep tries: those of a list, every combination of a grid, or a number drawn from a space.

[{dim: 32}, {dim: 64, l2: 0.2}]                      two trials; what one does not name is as the flags say
{dim: [32, 64], l2: [0.05, 0.1]}                     a grid: four trials
{dim: [32, 64], l2: {low: 0.01, high: 1, log: true}} a space, to draw from
"""

import dataclasses
import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from schemas.errors import InputError
from transforms.train.settings import TrainingSettings

SHARED = {
    "seed": "all trials are judged on the same validation slice: set it for all with --seed",
    "validation_fraction": "all trials are judged on the same validation slice: set it for all with --validation_fraction",
    "validation": "all trials are judged as the split asks for: leave it out",
    "half_life_days": "it is of the ratings, not of a trial: set it for all with --recency_half_life_days",
    "include_validation": "a trial is judged on the validation slice and must not learn from it: leave it out",
}
"""The settings that all trials have in common, and why."""

SPACE: Mapping[str, Any] = {
    "learning_rate": {"low": 0.003, "high": 0.03, "log": True},
    "l2": {"low": 0.02, "high": 0.5, "log": True},
    "dim": [32, 64, 128],
    "batch_size": [256, 512, 1024],
}
"""What is drawn from where no trials are given: around what has served well on ratings of many kinds."""

_TYPES = (str, int, float, bool)
_MAX_REPEATS = 1_000


def varied_settings() -> dict[str, type]:
    """Returns the settings that a trial may have of its own, and their types; None is what a trial leaves out."""
    kinds = {field.name: (get_args(field.type) or (field.type,))[0] for field in dataclasses.fields(TrainingSettings)}
    return {name: kind for name, kind in kinds.items() if kind in _TYPES and name not in SHARED}


def varied_of(settings: TrainingSettings) -> dict[str, Any]:
    """Returns the values of those settings; of L2 and the dimensions, those that are meant."""
    return {name: getattr(settings, name) for name in varied_settings()} | {
        "l2": settings.l2_weight,
        "dim": settings.dimensions,
    }


@dataclass(frozen=True)
class Range:
    """Numbers to draw from.

    Attributes:
      low: the least.
      high: the greatest.
      log: whether equal ratios are equally likely.
      is_whole: whether only whole numbers are drawn.
    """

    low: float
    high: float
    log: bool
    is_whole: bool

    def draw(self, rng: np.random.Generator) -> float | int:
        """Returns a number, of three digits where it need not be whole: nobody wants to read more."""
        at = rng.random()
        drawn = self.low * (self.high / self.low) ** at if self.log else self.low + (self.high - self.low) * at
        if self.is_whole:
            return round(drawn)
        return min(max(float(f"{drawn:.3g}"), self.low), self.high)


def trials_of(declared: Any, base: TrainingSettings, num_trials: int | None, name: str) -> list[TrainingSettings]:
    """Returns the trials that a declaration asks for, none twice.

    Args:
      declared: a list of trials, or a mapping of settings to values: see the module.
      base: has what a trial does not name; the first trial of a drawn space is this one itself, to compare with.
      num_trials: how many to draw from a mapping; None tries every combination of its lists.
      name: what to call the declaration in messages.

    Raises:
      InputError: naming the trial, the setting and the repair.
    """
    if not declared:
        raise InputError(f"{name} is empty: list trials, or settings with the values to try")
    if isinstance(declared, list):
        if num_trials is not None:
            raise InputError(f"{name} is a list of {len(declared)} trials, and --num_trials draws from a space: leave it out")
        made = [_listed(entry, f"trial {number} of {name}") for number, entry in enumerate(declared, 1)]
    elif not isinstance(declared, Mapping):
        raise InputError(f"{name} must be a list of trials or a mapping of settings to values, got {declared!r}: repair it")
    elif num_trials is None:
        made = list(_grid(declared, name))
    else:
        made = _drawn(_space(declared, name), base, num_trials)
    trials: dict[TrainingSettings, None] = {}
    for number, settings in enumerate(made, 1):
        try:
            trials[dataclasses.replace(base, **settings)] = None
        except InputError as error:
            raise InputError(f"trial {number} of {name}: {error}") from error
    return list(trials)


def _listed(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise InputError(f"{where} must be a mapping of settings to values, got {entry!r}: write it as {{dim: 64, l2: 0.1}}")
    return {str(setting): _value(str(setting), value, where) for setting, value in entry.items()}


def _grid(declared: Mapping[Any, Any], name: str) -> Iterator[dict[str, Any]]:
    """Yields every combination, the last setting's values changing fastest."""
    space = _space(declared, name)
    for setting, values in space.items():
        if isinstance(values, Range):
            raise InputError(
                f"{setting} in {name} is a range, and a grid needs values: list them, or draw from it with --num_trials"
            )
    for combination in itertools.product(*(values for values in space.values() if not isinstance(values, Range))):
        yield dict(zip(space, combination, strict=True))


def _drawn(space: Mapping[str, Sequence[Any] | Range], base: TrainingSettings, num_trials: int) -> list[dict[str, Any]]:
    """Returns the base and different draws, fewer where the space has no more; the first of more draws are those of fewer."""
    rng = np.random.default_rng(base.seed)
    found: dict[tuple, dict[str, Any]] = {tuple(getattr(base, name) for name in space): {}}
    repeats = 0
    while len(found) < num_trials and repeats < _MAX_REPEATS:
        drawn = {
            name: values.draw(rng) if isinstance(values, Range) else values[int(rng.integers(len(values)))]
            for name, values in space.items()
        }
        repeats = repeats + 1 if tuple(drawn.values()) in found else 0
        found.setdefault(tuple(drawn.values()), drawn)
    return list(found.values())


def _space(declared: Mapping[Any, Any], name: str) -> dict[str, list[Any] | Range]:
    """Checks a mapping of settings to values."""
    return {str(setting): _values(str(setting), values, name) for setting, values in declared.items()}


def _values(setting: str, declared: Any, name: str) -> list[Any] | Range:
    kind = _type_of(setting, name)
    if isinstance(declared, Mapping):
        return _range(setting, kind, declared, name)
    values = declared if isinstance(declared, list) else [declared]
    if not values:
        raise InputError(f"{setting} in {name} has no values: list some, or leave it out")
    return list(dict.fromkeys(_value(setting, each, name) for each in values))


def _range(setting: str, kind: type, declared: Mapping[Any, Any], name: str) -> Range:
    repair = f"write it as {setting}: {{low: 1, high: 10, log: true}}"
    if kind not in (int, float):
        raise InputError(f"{setting} in {name} cannot be a range, since it is no number: list its values")
    unknown = sorted(str(each) for each in declared if each not in ("low", "high", "log"))
    if unknown or "low" not in declared or "high" not in declared:
        raise InputError(f"the range of {setting} in {name} takes low, high and log, got {dict(declared)}: {repair}")
    low, high = (_value(setting, declared[each], name) for each in ("low", "high"))
    log = declared.get("log", False)
    if not isinstance(log, bool):
        raise InputError(f"log in the range of {setting} in {name} must be true or false, got {log!r}: {repair}")
    if not low < high:
        raise InputError(f"the range of {setting} in {name} must go from low to high, got {low:g} to {high:g}: swap its ends")
    if log and low <= 0:
        raise InputError(f"a logarithmic range must begin above 0, and that of {setting} in {name} does at {low:g}: raise low")
    return Range(low, high, log, kind is int)


def _type_of(setting: str, where: str) -> type:
    known = varied_settings()
    if setting in SHARED:
        raise InputError(f"{where} has the setting {setting}, but {SHARED[setting]}")
    if setting not in known:
        near = difflib.get_close_matches(setting, known, n=1)
        repair = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(known)}"
        raise InputError(f"{where} has an unknown setting {setting!r}: {repair}")
    return known[setting]


def _value(setting: str, value: Any, where: str) -> Any:
    """Returns a value as its setting's type; YAML reads 1e-3 as text, and 1 where a float is wanted as a whole number."""
    kind = _type_of(setting, where)
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif type(value) is kind:
        return value
    expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    raise InputError(f"{setting} in {where} must be {expected}, got {value!r}: change it")
