"""Reads YAML that people write: plain values only, and no key twice, of which YAML itself would keep the last unsaid."""

from typing import Any

import yaml

from schemas.errors import InputError


def read_yaml(text: str | bytes, what: str, many: bool = False) -> Any:
    """Returns the value that a text in YAML stands for.

    Args:
      text: UTF-8 where it is bytes.
      what: whose text it is, for messages: 'the config job.yaml'.
      many: whether that is a plural.

    Raises:
      InputError: if it is not YAML, asks for more than plain values, or has a key twice.
    """
    try:
        return yaml.load(text, _OnceEach)
    except _Twice as error:
        raise InputError(f"{what} {'have' if many else 'has'} {error}: keep one") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{what} {'are' if many else 'is'} not YAML ({error}): repair {'them' if many else 'it'}") from error


class _Twice(ValueError):
    """Names the key, and both of its lines."""


class _OnceEach(yaml.SafeLoader):
    """PyYAML's safe loader, which makes nothing but plain values; here a key may stand in a mapping only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                value = (key.tag, key.value)
                if value in lines:
                    raise _Twice(f"{key.value} twice, on lines {lines[value]} and {line}")
                lines[value] = line
        return super().construct_mapping(node, deep)
