"""Remembers what Beam finds out anew, hundreds of times in each pipeline: a third of what a small job costs.

Nothing that is tested comes out differently: a function has the arguments that it had, a DoFn the state that it had, and a view
of options is a window to the same values. Commands that run in a process of their own have Beam as it is.
"""

import types
from typing import Any
from weakref import WeakKeyDictionary

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import core, userstate

_ARGUMENTS: WeakKeyDictionary[types.FunctionType, dict[bool, tuple[list[str], list[Any]]]] = WeakKeyDictionary()
_SPECS: WeakKeyDictionary[core.DoFn, tuple[set, set]] = WeakKeyDictionary()
_VIEWS: WeakKeyDictionary[PipelineOptions, dict[type[PipelineOptions], PipelineOptions]] = WeakKeyDictionary()
_find_arguments, _find_specs, _make_view = core.get_function_args_defaults, userstate.get_dofn_specs, PipelineOptions.view_as


def _function_arguments(f: Any) -> tuple[list[str], list[Any]]:
    is_bound = isinstance(f, types.MethodType)
    plain = f.__func__ if is_bound else f
    if not isinstance(plain, types.FunctionType):
        return _find_arguments(f)
    known = _ARGUMENTS.setdefault(plain, {})
    if is_bound not in known:
        known[is_bound] = _find_arguments(f)
    names, defaults = known[is_bound]
    return list(names), list(defaults)


def _dofn_specs(dofn: core.DoFn) -> tuple[set, set]:
    if dofn not in _SPECS:
        _SPECS[dofn] = _find_specs(dofn)
    states, timers = _SPECS[dofn]
    return set(states), set(timers)


def _view(options: PipelineOptions, kind: type[PipelineOptions]) -> PipelineOptions:
    views = _VIEWS.setdefault(options, {})
    if kind not in views:
        views[kind] = _make_view(options, kind)
    return views[kind]


def remember() -> None:
    """Makes Beam remember, in this process."""
    core.get_function_args_defaults = _function_arguments
    userstate.get_dofn_specs = _dofn_specs
    PipelineOptions.view_as = _view  # type: ignore[method-assign,assignment]
