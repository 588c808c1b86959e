"""The model file: a zip of `model.json` and `arrays.safetensors`. It holds numbers and names, never code.

Written to a temporary name, fsynced and renamed, so that a crash leaves the old file or the new one.
"""

from __future__ import annotations

import errno
import io
import json
import os
import pathlib
import re
import zipfile
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import PyTree

from advantage.disk import replace_file, sync

FORMAT = 1


@runtime_checkable
class BinaryFile(Protocol):
    """An open binary file."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes."""
        ...

    def write(self, data: bytes, /) -> int:
        """Append bytes."""
        ...


Target = str | os.PathLike | BinaryFile


class NotAModel(ValueError):
    """The file is no model file, is damaged, or does not fit what was asked for."""


def write_model(target: Target, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a model file to a path (`.zip` is added where there is no suffix) or an open binary file.

    Raises:
        OSError: the folder cannot be made or written; nothing that was there is lost.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.json", json.dumps({"format": FORMAT, **header}, indent=1))
        archive.writestr("arrays.safetensors", safetensors.numpy.save(arrays))
    if hasattr(target, "write"):
        target.write(buffer.getvalue())
        return
    path = with_suffix(target)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, buffer.getvalue())
    except OSError as error:
        said = f"cannot write the model to {path}: {error.strerror or error}; choose another path, the model is still in memory"
        failure = type(error)(said)
        failure.errno = error.errno
        raise failure from error


def read_model(source: Target) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """`(header, arrays)` of a model file. Nothing in the file is ever executed.

    Raises:
        FileNotFoundError: there is no such file (with and without `.zip`).
        NotAModel: it is not a model file, is cut short, or comes from a newer release.
    """
    name = "the open file" if hasattr(source, "read") else str(source)
    try:
        with zipfile.ZipFile(source if hasattr(source, "read") else _existing(source)) as archive:
            header = json.loads(archive.read("model.json"))
            packed = archive.read("arrays.safetensors")
        arrays = safetensors.numpy.load(packed)
    except FileNotFoundError:
        raise
    except KeyError as error:
        raise NotAModel(
            f"{name} is a zip file but not an advantage model: {error.args[0]} (a file of"
            " Stable-Baselines3 cannot be loaded; train the model anew)"
        ) from None
    except Exception as error:
        # zipfile, json and safetensors each raise their own kinds on damage: the user needs one message.
        raise NotAModel(f"{name} is not an advantage model or is damaged ({type(error).__name__}: {error})") from None
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise NotAModel(f"{name} is not an advantage model: its header has no format number")
    if header["format"] > FORMAT:
        raise NotAModel(
            f"{name} was written by a newer release (format {header['format']}, this one reads up to"
            f" {FORMAT}): pip install --upgrade advantage"
        )
    return header, arrays


def write_arrays(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays, whole or not at all, without a copy of all in memory.

    Raises:
        OSError: the folder cannot be made or written.
    """
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        save_arrays(temporary, arrays)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def save_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays and wait until they are on the disk; raises `OSError`."""
    try:
        safetensors.numpy.save_file({name: np.asarray(x, order="C") for name, x in arrays.items()}, path)
    except safetensors.SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        number = int(code[1]) if code else errno.EIO
        raise OSError(number, os.strerror(number)) from error
    sync(path)


def with_suffix(path: str | os.PathLike) -> pathlib.Path:
    """The path with `.zip`, unless it has a suffix of its own."""
    path = pathlib.Path(path)
    return path if path.suffix else path.with_name(path.name + ".zip")


def named_arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """A tree's arrays by their path, such as `.network.actor.head.weight`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.array(x) for path, x in leaves}


def restored(like: PyTree, arrays: dict[str, np.ndarray], what: str) -> PyTree:
    """A tree of `like`'s structure with the arrays of those names.

    Raises:
        NotAModel: a name is missing, or has another shape or dtype than `like` expects.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    values = []
    for path, expected in leaves:
        name = jax.tree_util.keystr(path)
        value = arrays.get(name)
        if value is None:
            raise NotAModel(f"{what} has no array {name!r}: it belongs to another network or algorithm")
        if value.shape != expected.shape or value.dtype != expected.dtype:
            raise NotAModel(
                f"{what}: array {name!r} has shape {value.shape} and dtype {value.dtype}, expected"
                f" {expected.shape} and {expected.dtype}"
            )
        values.append(value)
    return jax.tree.unflatten(structure, values)


def _existing(path: str | os.PathLike) -> pathlib.Path:
    for candidate in (pathlib.Path(path), pathlib.Path(f"{os.fspath(path)}.zip")):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"no model file at {path} (nor with .zip): check the path")
