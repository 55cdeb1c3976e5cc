"""Reads a YAML file that a flag names."""

from typing import Any

from apache_beam.io.filesystem import BeamIOError

from schemas.errors import InputError
from schemas.storage import exists, read_bytes
from schemas.yaml_text import read_yaml


def read_given_yaml(flag: str, what: str, path: str, many: bool = False) -> Any:
    """Returns what a YAML file says.

    Args:
      flag: that names it.
      what: the file is, in words, for what is wrong.
      path: where it is.
      many: whether that is a plural.

    Raises:
      InputError: if there is no such file, it cannot be read, or it is not YAML.
    """
    if not exists(path):
        raise InputError(f"{what} {path} {'do' if many else 'does'} not exist: check {flag}")
    try:
        text = read_bytes(path)
    except (OSError, BeamIOError) as error:
        raise InputError(f"{what} {path} cannot be read ({error}): check {flag}") from error
    return read_yaml(text, f"{what} {path}", many=many)
