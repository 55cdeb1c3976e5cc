"""Makes equal SavedModels equal files: TensorFlow numbers functions by all that its process has traced before."""

import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from tensorflow.core.protobuf import saved_model_pb2

_NUMBERED = re.compile(r"(.*_)(\d+)")


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
    names = {name: f"{numbered[name][1]}{place}" for place, name in enumerate(ordered)}
    _rename(model, {**names, **{old.encode(): new.encode() for old, new in names.items()}})
    for function in functions:
        for arguments in function.arg_attr.values():
            # A captured variable is named by a number of the process.
            if not arguments.attr["_user_specified_name"].s.strip(b"0123456789"):
                del arguments.attr["_user_specified_name"]
    for graph in model.meta_graphs:
        listed = sorted(graph.graph_def.library.function, key=lambda each: each.signature.name)
        del graph.graph_def.library.function[:]
        graph.graph_def.library.function.extend(listed)
    path.write_bytes(model.SerializeToString(deterministic=True))


Names = Mapping[str | bytes, str | bytes]


def _rename(message: Any, names: Names) -> None:
    """Replaces names wherever they stand alone in a protocol buffer: as text or bytes, in lists, and as keys of maps."""
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _rename_map(value, names, is_message=field.message_type.fields_by_name["value"].message_type is not None)
        elif field.message_type is not None:
            for each in value if field.is_repeated else (value,):
                _rename(each, names)
        elif field.is_repeated:
            for place, each in enumerate(value):
                value[place] = names.get(each, each)
        elif value in names:
            setattr(message, field.name, names[value])


def _rename_map(entries: Any, names: Names, is_message: bool) -> None:
    for key in list(entries):
        if is_message:
            _rename(entries[key], names)
        else:
            entries[key] = names.get(entries[key], entries[key])
    # All go before any comes back: a new name may be another's old one.
    moved = {key: deepcopy(entries[key]) for key in entries if key in names}
    for key in moved:
        del entries[key]
    for key, value in moved.items():
        if is_message:
            entries[names[key]].CopyFrom(value)
        else:
            entries[names[key]] = value
