"""Arrays of XLA whose memory is a file's: for replay that is larger than the machine's memory.

XLA takes memory of its own and writes a donated array where it lies. So a file's pages are put in place of that memory's,
before anything has touched it: programs compute with the array as with any other, and the kernel keeps in memory what
is used and writes the rest to the disk. The file has no name: it is gone with the process.
"""

import ctypes
import errno
import functools
import math
import mmap
import os
import pathlib
import platform
import shutil
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from advantage.platform import KEPT, room_on

BUDGET = "ADVANTAGE_REPLAY_MEMORY_GB"
"""An environment variable: gigabytes of memory that replay may take before its observations go to a file."""

SHARE = 0.75
"""Of the machine's memory, what replay may take by default."""

LEAST = KEPT
"""Bytes of an array that gets a file. The C library takes memory of that size from the kernel and gives it back when the array
goes; in pieces of its own heap it would be used for something else then, and processes that are forked would share it.
"""

OBSERVATIONS = ("obs", "next_obs")
"""Leaves of a replay that may lie in files: they are large, and zero where nothing is remembered."""

TARGET = "advantage_filed"
_lock = threading.Lock()
_failed: list[Exception] = []


def budget(device: Any) -> float:
    """Bytes that replay may take of the memory of a `jax.Device`.

    Raises:
        ValueError: the environment variable holds no number above 0.
    """
    given = os.environ.get(BUDGET)
    if given is None:
        return SHARE * room_on(device)
    try:
        gigabytes = float(given)
    except ValueError:
        gigabytes = -1.0
    if not gigabytes > 0:
        raise ValueError(f"the environment variable {BUDGET}={given!r} has to be a number of gigabytes above 0")
    return min(gigabytes * 1e9, room_on(device))


def fileable(memory: PyTree, seeds: int) -> list[bool]:
    """Which leaves of a replay (one seed's arrays, or anything with a shape and a dtype) may lie in files, of all seeds."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(memory)
    return [_is_observation(path) and seeds * x.size * x.dtype.itemsize >= LEAST for path, x in leaves]


def _is_observation(path: Sequence[Any]) -> bool:
    return any(getattr(key, "name", None) in OBSERVATIONS for key in path)


def free_on_disk() -> float:
    """Bytes free where files are made: Python's `tempfile.gettempdir()`, which `TMPDIR` chooses."""
    return float(shutil.disk_usage(tempfile.gettempdir()).free)


def filed_or_refused(memory: PyTree, seeds: int, rows: int, device: Any, fused: bool) -> str | None:
    """A line that says that a replay's observations go to a file; None: all of it fits in the budget.

    Args:
        memory: one seed's, as `jax.eval_shape` gives it.
        rows: its `buffer_size`.
        device: a `jax.Device`.
        fused: its environments run on the device, in programs that make its memory themselves.

    Raises:
        ValueError: it fits neither in memory nor on the disk; the sizes are named.
    """
    sizes = [seeds * x.size * x.dtype.itemsize for x in jax.tree.leaves(memory)]
    needed, within = sum(sizes), budget(device)
    in_files = sum(size for size, may in zip(sizes, fileable(memory, seeds), strict=True) if may)
    what = f"buffer_size={rows} needs {_gib(needed)} for {seeds} seed(s)"
    where = f"the {device.platform} has {_gib(room_on(device))} in all, of which replay takes {_gib(within)} ({BUDGET})"
    if needed <= within:
        return None
    # No kernel gives an array that is longer than memory, whatever is to become of its pages.
    if device.platform == "cpu" and not fused and needed - in_files <= within and max(sizes) <= room_on(device):
        free, folder = free_on_disk(), tempfile.gettempdir()
        if in_files <= free:
            return f"{what}, and {where}: {_gib(in_files)} of observations are kept in a file in {folder} (TMPDIR)"
        where, within = f"{where}, and {folder} (TMPDIR) has {_gib(free)} free", max(within, free)
    raise ValueError(f"{what}, and {where}: at most {int(rows * within / needed):,} fit; keep well below")


def _gib(size: int | float) -> str:
    return f"{size / 2**30:.1f} GiB"


def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    """An array of zeros on the CPU, in a file without a name.

    Raises:
        OSError: there is no room for the file.
    """
    _register()
    size = math.prod(shape) * np.dtype(dtype).itemsize
    call = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct(shape, dtype))
    with _lock:
        _failed.clear()
        # The handler learns the number of bytes from the operand: 64 bits, which JAX has switched off.
        array = jax.block_until_ready(jax.jit(call)(np.array([size >> 32, size & 0xFFFFFFFF], np.uint32)))
        if _failed:
            raise _failed[0]
    return array


def is_filed(array: Array) -> bool:
    """Whether an array's memory is a file's; known on Linux, elsewhere False."""
    maps = pathlib.Path("/proc/self/maps")
    middle = array.addressable_shards[0].data.unsafe_buffer_pointer() + array.nbytes // 2
    for line in maps.read_text().splitlines() if maps.exists() else ():
        bounds, allowed, _, _, inode, *_ = line.split()
        low, high = (int(x, 16) for x in bounds.split("-"))
        if low <= middle < high:
            return inode != "0" and allowed.endswith("s")  # shared: what is written goes to the file
    return False


# -- XLA's foreign functions -------------------------------------------------------------------------
#
# The structures of `xla/ffi/api/c_api.h` as far as they are read here; each begins with its size and its extensions.

_HEAD = [("struct_size", ctypes.c_size_t), ("extension", ctypes.c_void_p)]


class _Version(ctypes.Structure):
    _fields_ = (*_HEAD, ("major", ctypes.c_int), ("minor", ctypes.c_int))


class _Api(ctypes.Structure):
    _fields_ = (*_HEAD, ("version", _Version))


class _Extension(ctypes.Structure):
    """Of the one kind there is: the question which version of all this a handler was written for."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t), ("type", ctypes.c_int), ("next", ctypes.c_void_p), ("metadata", ctypes.c_void_p),
    )  # fmt: skip


class _Metadata(ctypes.Structure):
    _fields_ = (("struct_size", ctypes.c_size_t), ("version", _Version), ("traits", ctypes.c_uint32))


class _Buffer(ctypes.Structure):
    _fields_ = (*_HEAD, ("dtype", ctypes.c_int), ("data", ctypes.c_void_p))


class _Buffers(ctypes.Structure):
    _fields_ = (
        *_HEAD, ("size", ctypes.c_int64), ("types", ctypes.c_void_p), ("buffers", ctypes.POINTER(ctypes.POINTER(_Buffer))),
    )  # fmt: skip


class _Frame(ctypes.Structure):
    _fields_ = (
        *_HEAD, ("api", ctypes.POINTER(_Api)), ("context", ctypes.c_void_p), ("stage", ctypes.c_int),
        ("arguments", _Buffers), ("results", _Buffers),
    )  # fmt: skip


def _handle(at: int) -> None:
    """Answers which version it is of, or puts a file's pages in place of those of the result, which hold nothing yet."""
    frame = _Frame.from_address(at)
    if frame.extension:
        metadata = _Metadata.from_address(_Extension.from_address(frame.extension).metadata)
        ours = frame.api.contents.version  # these structures are those of every version until now
        metadata.version.major, metadata.version.minor, metadata.traits = ours.major, ours.minor, 0
        return
    words = ctypes.cast(frame.arguments.buffers[0].contents.data, ctypes.POINTER(ctypes.c_uint32))
    try:
        _map(frame.results.buffers[0].contents.data, words[0] << 32 | words[1])
    except Exception as error:  # nothing may leave a function that C calls
        _failed.append(error)


def _map(out: int, size: int) -> None:
    # glibc's mark of a block that is the kernel's own; what it has freed before comes first, if that is as large.
    if platform.libc_ver()[0] == "glibc" and not ctypes.c_size_t.from_address(out - 8).value & 2:
        raise OSError(errno.ENOMEM, "the replay's memory is of the heap, where no file can lie: train in a new process")
    page = mmap.PAGESIZE
    begin, end = -(-out // page) * page, (out + size) // page * page
    ctypes.memset(out, 0, begin - out)
    ctypes.memset(end, 0, out + size - end)
    with tempfile.TemporaryFile() as file:
        # Its room is taken now, and not when the disk is full some day; macOS has no such function.
        getattr(os, "posix_fallocate", _lengthen)(file.fileno(), 0, end - begin)
        _put_pages(begin, end - begin, file.fileno())


def _lengthen(file: int, begin: int, size: int) -> None:
    os.truncate(file, begin + size)


def _put_pages(begin: int, size: int, file: int) -> None:
    """`mmap` at this very address, which Python's own cannot."""
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    fixed = 0x10  # MAP_FIXED, on Linux and macOS
    if function(begin, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | fixed, file, 0) != begin:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_HANDLER = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(_handle)


@functools.cache
def _register() -> None:
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(_HANDLER), platform="cpu")
