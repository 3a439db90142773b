"""YAML files that become dataclasses, strictly: every message names the file and the line."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from common.command_line import did_you_mean
from common.plain_yaml import YamlError, check_yaml


class EntryError(ValueError):
    """A file is not what it should be; the message names file, line and key."""


class Mapping(dict):
    line = 0


class List(list):
    line = 0


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise EntryError(f"{key_node.start_mark.name}:{key_node.start_mark.line + 1}: {key} is given twice")
            seen.add(key)
        result = Mapping(super().construct_mapping(node, deep=True))
        result.line = node.start_mark.line + 1
        return result

    def construct_located(self, node: yaml.SequenceNode) -> list[Any]:
        result = List(self.construct_sequence(node, deep=True))
        result.line = node.start_mark.line + 1
        return result


_Loader.add_constructor(
    yaml.resolver.BaseResolver.DEFAULT_SEQUENCE_TAG,
    lambda loader, node: loader.construct_located(node),  # type: ignore[union-attr]
)
_Loader.add_constructor(
    yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG,
    lambda loader, node: loader.construct_mapping(node),  # type: ignore[arg-type]
)


def read(path: str | Path) -> Any:
    """Plain values of a file; mappings and lists know their `line`.

    Raises:
        OSError: the file cannot be read.
        EntryError: it is not YAML, or a key is given twice.
    """
    try:
        check_yaml(path)
        with Path(path).open(encoding="utf-8") as file:
            return yaml.load(file, _Loader)
    except (yaml.YAMLError, YamlError) as error:
        raise EntryError(str(error) if isinstance(error, YamlError) else f"{path}: {error}") from error


def build(kind: Any, value: Any, path: str, line: int = 1) -> Any:
    """Turn plain values into dataclasses, strictly."""
    line = getattr(value, "line", line)
    where = f"{path}:{line}"
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        if not isinstance(value, list):
            raise EntryError(f"{where}: expected a list, found {value!r}")
        return [build(args[0], v, path, line) for v in value]
    if origin is dict:
        if not isinstance(value, dict):
            raise EntryError(f"{where}: expected keys with values, found {value!r}")
        return {k: build(args[1], v, path, line) for k, v in value.items()}
    if origin is types.UnionType:
        return None if value is None else build(args[0], value, path, line)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise EntryError(f"{where}: expected keys with values, found {value!r}")
        hints = {k: v for k, v in typing.get_type_hints(kind).items() if k not in ("line", "path")}
        required = [
            f.name
            for f in dataclasses.fields(kind)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]
        name = f" of {value['id']}" if "id" in value else ""
        for key in value:
            if key not in hints:
                hint = did_you_mean(str(key), hints, f" It takes {', '.join(hints)}.")
                raise EntryError(f"{where}: unknown key {key!r}{name}.{hint}")
        if missing := [key for key in required if key not in value]:
            raise EntryError(f"{where}: {', '.join(missing)}{name} is missing")
        result = kind(**{k: build(hints[k], v, path, line) for k, v in value.items()})
        if any(f.name == "line" for f in dataclasses.fields(kind)):
            result.line = line  # type: ignore[attr-defined]
        return result
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is not Any and not isinstance(value, kind):
        hint = " Quote it, so that it stays as printed." if kind is str else ""
        raise EntryError(f"{where}: expected {kind.__name__}, found {value!r}.{hint}")
    return value
