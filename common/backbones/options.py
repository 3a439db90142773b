"""Options of a network, declared once as a frozen dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


def changed(options: Options, changes: Mapping[str, Any]) -> Options:
    """A copy of `options` with other values for the fields in `changes`.

    Raises:
        TypeError: there is no such option; the message names those that there are.
    """
    names = [field.name for field in fields(options)]
    for name in changes:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(names)}"
            raise TypeError(f"there is no option {name!r}; {hint}")
    return replace(options, **changes)
