"""A folder that a command fills, which no other run and no other command may write to."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.datamodules.errors import DatasetError
from common.datamodules.manifest import CLASSES_FILE, Manifest, read_class_names
from common.output_files import locked


@contextmanager
def reserved(out: Path, manifest: Manifest, record_file: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Check that the folder may be written to, and keep other runs of the command out of it.

    Args:
        out: folder for files made from those of a manifest: new, empty, or of an earlier run.
        manifest: what they are made from.
        record_file: name of the file in ``out`` that holds root and options.
        options: those of the command; an earlier run must have had the same.

    Raises:
        DatasetError: ``out`` holds something else, lies in the root or around it, or is being written to.
    """
    here, root = out.resolve(), manifest.root.resolve()
    if here == root or here.is_relative_to(root) or root.is_relative_to(here):
        raise DatasetError(f"--out {out} and the folder of the videos, {root}, must lie outside of each other.")
    record, file = {"root": str(root), **options}, out / record_file
    if out.exists() and not file.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} exists and was not made by this command: choose another --out.")
    names = read_class_names(out / CLASSES_FILE) if out.exists() else None
    if names is not None and names != list(manifest.class_names):
        raise DatasetError(f"{out / CLASSES_FILE} holds other classes: choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    busy = DatasetError(f"another run of this command is writing to {out}: wait until it has ended.")
    with locked(file, busy) as lock:
        lock.seek(0)
        if text := lock.read():
            if text != json.dumps(record):
                raise DatasetError(f"{out} was made {_difference(text, record)}: choose another --out.")
        else:
            lock.write(json.dumps(record))
            lock.flush()
        yield


def _difference(text: str, record: Mapping[str, Any]) -> str:
    """In which of the options that a command recorded it differs from another run of it."""
    try:
        before = json.loads(text)
        names = [name for name in record if before.get(name) != record[name]]
    except (ValueError, AttributeError):
        return "by another command"
    texts = {"root": f"from videos in {before.get('root')}", "videos": "from another list of videos"}
    return "; ".join(texts.get(name, f"with {name} {before.get(name)}, not {record[name]}") for name in names)


def replace_manifest(manifest: Manifest) -> None:
    """Write a manifest to its `source`. One with other content, which a user may have edited, is kept beside it."""
    path = manifest.source
    if path.is_file() and path.read_text(encoding="utf-8") != manifest.text():
        names = (f"{path.stem}.previous{'' if n == 1 else f'-{n}'}{path.suffix}" for n in itertools.count(1))
        kept = next(place for name in names if not (place := path.with_name(name)).exists())
        path.replace(kept)
        print(f"{path} differs from the new one and was renamed to {kept.name}")
    manifest.write(path, overwrite=True)
