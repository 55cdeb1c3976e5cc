"""Makes equal SavedModels equal files: TensorFlow numbers functions by all that its process has traced before."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorflow.core.protobuf import saved_model_pb2

_NUMBERED = re.compile(r"(.*_)(\d+)")
_LONGEST_NAME = 1_000
"""Text and bytes that are longer are no names of functions, but what a graph holds."""


def make_canonical(folder: Path) -> None:
    """Writes a SavedModel's graph anew: its functions are numbered from 0 in their order, and listed by name.

    What it computes stays as it is. Two models that were traced alike, in whatever process, have the same bytes then.

    Args:
      folder: a local folder that `tf.saved_model.save` wrote.
    """
    # It holds a random number, and is not needed.
    (folder / "fingerprint.pb").unlink(missing_ok=True)
    path = folder / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    functions = [each for graph in model.meta_graphs for each in graph.graph_def.library.function]
    numbered = {name: match for name in {each.signature.name for each in functions} if (match := _NUMBERED.fullmatch(name))}
    ordered = sorted(numbered, key=lambda name: (int(numbered[name][2]), name))
    _rename(model, {name: f"{numbered[name][1]}{place}" for place, name in enumerate(ordered)})
    for function in functions:
        for arguments in function.arg_attr.values():
            # A captured variable is named by a number of the process.
            if arguments.attr["_user_specified_name"].s.isdigit() or not arguments.attr["_user_specified_name"].s:
                del arguments.attr["_user_specified_name"]
    for graph in model.meta_graphs:
        listed = sorted(graph.graph_def.library.function, key=lambda each: each.signature.name)
        del graph.graph_def.library.function[:]
        graph.graph_def.library.function.extend(listed)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _rename(message: Any, names: Mapping[str, str]) -> None:
    """Replaces names wherever they stand alone in a protocol buffer: as text or bytes, in lists, and as keys of maps."""
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _rename_map(value, names, is_message=field.message_type.fields_by_name["value"].message_type is not None)
        elif field.message_type is not None:
            for each in value if field.is_repeated else (value,):
                _rename(each, names)
        elif field.is_repeated:
            for place, each in enumerate(value):
                if (new := _renamed(each, names)) is not each:
                    value[place] = new
        elif (new := _renamed(value, names)) is not value:
            setattr(message, field.name, new)


def _rename_map(entries: Any, names: Mapping[str, str], is_message: bool) -> None:
    for key in list(entries):
        if is_message:
            _rename(entries[key], names)
        elif (new_value := _renamed(entries[key], names)) is not entries[key]:
            entries[key] = new_value
    moved = {key: entries[key] for key in entries if _renamed(key, names) is not key}
    copies = {key: type(value).FromString(value.SerializeToString()) if is_message else value for key, value in moved.items()}
    for key in moved:
        del entries[key]
    for key, value in copies.items():
        if is_message:
            entries[names[key]].CopyFrom(value)
        else:
            entries[names[key]] = value


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, bytes) and len(value) < _LONGEST_NAME:
        try:
            found = names.get(value.decode())
        except UnicodeDecodeError:
            return value
        return value if found is None else found.encode()
    return value
