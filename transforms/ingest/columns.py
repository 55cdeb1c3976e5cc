"""Finds which of a source's columns has which role."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from schemas.errors import InputError
from schemas.items import ITEMS
from transforms.ingest.formats import wrong_delimiter


@dataclass(frozen=True)
class Roles:
    """The columns that a dataset is made of, and the names that each is known by."""

    dataset: str
    flag: str
    """The flag that maps columns to roles."""
    required: Mapping[str, tuple[str, ...]]
    """Role -> other names that it is taken from when no column has the role's own name."""
    optional: Mapping[str, tuple[str, ...]]
    keeps_other_columns: bool = False

    @property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        return {**self.required, **self.optional}


_USER_ID = ("userId", "user", "uid")
_ITEM_ID = ("itemId", "item", "movie_id", "movieId", "product_id", "productId")

RATING_ROLES = Roles(
    "ratings",
    "--columns",
    {"user_id": _USER_ID, "item_id": _ITEM_ID},
    {"rating": ("user_rating", "stars"), "timestamp": ("time", "ts", "datetime")},
)

HELD_OUT_ROLES = replace(RATING_ROLES, dataset="held-out ratings")

ITEM_ROLES = Roles(
    "items", "--item_columns", {"item_id": _ITEM_ID}, {"title": ("movie_title", "name")}, keeps_other_columns=True
)


SERVED_USERS_ROLES = Roles("served users", "--list_columns", {"user_id": _USER_ID}, {})
EXCLUSIONS_ROLES = Roles("exclusions", "--list_columns", {"user_id": _USER_ID, "item_id": _ITEM_ID}, {})
BLOCKED_ITEMS_ROLES = Roles("blocked items", "--list_columns", {"item_id": _ITEM_ID}, {})
ALLOWED_ITEMS_ROLES = Roles("allowed items", "--list_columns", {"item_id": _ITEM_ID}, {})


def listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:20])
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown


def map_columns(roles: Roles, names: list[str], given: Mapping[str, str], where: str) -> dict[str, str]:
    """Settles which column plays which role.

    A mapping that is given wins; then the column with the role's own name; then the only one of its aliases that is there.

    Args:
      roles: The dataset's.
      names: The columns there are.
      given: Role -> column; '' leaves an optional role out.
      where: The file, for messages.

    Raises:
      InputError: if a role is unknown, has no column although it must, could have several, or shares its column with another.
    """
    flag, aliases = roles.flag, roles.aliases
    twice = sorted(name for name, count in Counter(names).items() if name and count > 1)
    if twice:
        raise InputError(f"{where} has more than one column named {listed(twice)}: rename or drop one in the file")
    for role, column in given.items():
        if role not in aliases:
            raise InputError(f"{flag} {role}={column}: there is no role {role!r}; the roles are {', '.join(aliases)}")
        if not column and role in roles.required:
            raise InputError(f"{flag} {role}=: {role} is required: name its column; {where} has {listed(names)}")
        if column and column not in names:
            raise InputError(f"{where} has no column {column!r} for {flag} {role}={column}; it has {listed(names)}")
    mapping = {}
    for role, others in aliases.items():
        taken = [column for other, column in given.items() if other != role]
        present = [name for name in others if name in names and name not in taken]
        if role in given:
            candidates = [given[role]] if given[role] else []
        elif role in names and role not in taken:
            candidates = [role]
        else:
            candidates = present
        if len(candidates) > 1:
            raise InputError(f"{where} has {listed(candidates)}, each of which could be {role}: choose with {flag} {role}=NAME")
        if candidates:
            mapping[role] = candidates[0]
        elif role in roles.required:
            wrong = wrong_delimiter(names)
            if wrong:
                raise InputError(f"{where} has no column for {role}; {wrong}")
            raise InputError(
                f"{where} has no column for {role} (looked for {', '.join((role, *others))}); it has {listed(names)}: "
                f"name it with {flag} {role}=NAME; the first line of a text file must name its columns"
            )
    for role, column in mapping.items():
        double = [other for other, its_column in mapping.items() if its_column == column and other != role]
        if double:
            raise InputError(f"{flag} maps column {column!r} to both {role} and {double[0]}: a column plays one role")
    return {role: mapping[role] for role in aliases if role in mapping}


def stored_type(dtype: pa.DataType) -> pa.DataType:
    """Returns a column's type once dictionaries are decoded, and views are text."""
    stored = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
    return pa.string() if pa.types.is_string_view(stored) else stored


def other_columns(roles: Roles, schema: pa.Schema, mapping: Mapping[str, str], where: str) -> pa.Schema:
    """Returns the columns that travel along; unnamed ones, and pandas' index, do not.

    Raises:
      InputError: if one has a name that is needed for something else.
    """
    if not roles.keeps_other_columns:
        return pa.schema([])
    others = [
        pa.field(column.name, stored_type(column.type))
        for column in schema
        if column.name and column.name not in mapping.values() and not column.name.startswith("__index_level_")
    ]
    reserved = {*ITEMS.names, *roles.aliases, "position", "source"}
    for column in others:
        if column.name in reserved:
            raise InputError(f"{where} has a column {column.name!r}, a name that is needed for another: rename it in the file")
    return pa.schema(others)
