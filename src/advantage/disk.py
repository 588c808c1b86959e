"""Files that are whole or not there: written beside their place, flushed to the disk and renamed."""

from __future__ import annotations

import os
import pathlib
import tempfile


def replace_file(path: pathlib.Path, data: bytes) -> None:
    """Write a file whole or not at all: a crash leaves the former one. Raises `OSError`."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def sync(path: pathlib.Path) -> None:
    """Wait until a file, or a folder's names, are on the disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
