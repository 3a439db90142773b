"""Checks of YAML files before other readers take them: plain values, of a bounded size once aliases are written out."""

from __future__ import annotations

from pathlib import Path

import yaml

from common.limits import HINT, limit

MAX_BYTES = limit(10 * 2**20)  # of a file
MAX_NODES = limit(200_000)  # values of a file, each counted as often as aliases repeat it
MAX_DEPTH = 100  # of values within each other

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # it limits the depth itself


class YamlError(ValueError):
    """A file is not YAML of plain values; the message names it."""


def check_yaml(path: str | Path) -> None:
    """Check that a file is YAML that any reader can take: UTF-8, plain values, not too many, not too deep.

    A few lines of aliases of aliases stand for billions of values, which would fill the memory of whoever writes them
    out, and a value may contain itself.

    Raises:
        OSError: the file cannot be read.
        YamlError: naming the file, and the line where that is known.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB; {HINT}")
        text = data.decode("utf-8-sig")
        root = yaml.compose(text, _Loader)
        if root is not None and _extent(root, {}, 0)[0] > MAX_NODES:
            raise ValueError(f"its aliases (*name) stand for more than {MAX_NODES} values; {HINT}")
        yaml.load(text, _Loader)  # tags such as !!int that do not fit their values
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise YamlError(f"{path}: not a YAML file of plain values: {error}") from error


def _extent(node: yaml.Node, known: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    """Number of values in a node, itself among them, and their depth."""
    if id(node) not in known:
        if depth > MAX_DEPTH:
            raise ValueError(f"its values lie more than {MAX_DEPTH} deep within each other")
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in children for part in pair]
        inner = [_extent(child, known, depth + 1) for child in children]
        known[id(node)] = 1 + sum(size for size, _ in inner), 1 + max((deep for _, deep in inner), default=0)
    if depth + known[id(node)][1] > MAX_DEPTH + 1:
        raise ValueError(f"its values lie more than {MAX_DEPTH} deep within each other")
    return known[id(node)]
