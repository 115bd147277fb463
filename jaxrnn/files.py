"""Safetensors files, written atomically and verified when read.

The format (https://huggingface.co/docs/safetensors) is eight bytes with the length of a JSON
header, the header (dtype, shape and position of each array), and the data. It contains no code, and
PyTorch reads it without JAX. It contains no checksum either, so `write` adds one to the header's
metadata.
"""

import contextlib
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO, NamedTuple, NoReturn

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

_DTYPES: dict[str, np.dtype] = {
    code: np.dtype(dtype)
    for code, dtype in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "U16": np.uint16,
        "U32": np.uint32,
        "U64": np.uint64,
        "I8": np.int8,
        "I16": np.int16,
        "I32": np.int32,
        "I64": np.int64,
        "F16": np.float16,
        "BF16": jnp.bfloat16,
        "F32": np.float32,
        "F64": np.float64,
        "F8_E4M3": jnp.float8_e4m3fn,
        "F8_E5M2": jnp.float8_e5m2,
        "C64": np.complex64,
    }.items()
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_DIGEST = "jaxrnn.sha256"
# A header takes about 100 bytes per array; a larger one would only exhaust memory.
_LARGEST_HEADER = 16 * 2**20


class Spec(NamedTuple):
    """Header entry of one array: its dtype, its shape and the position of its bytes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def write(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays to a safetensors file, atomically.

    After any interruption, `path` holds the complete old file or the complete new one: the data go
    to a temporary file in the same folder, which is synced and renamed. A new file gets the
    permissions that the umask gives, and an existing file keeps its own. A symbolic link is kept,
    and the file that it points to is replaced.

    Raises:
        ValueError: for a dtype that safetensors lacks; if `path` exists and is not a regular file.
        OSError: the file cannot be written. The old file is unchanged and no temporary file
            remains.
    """
    path = os.fsdecode(path)
    for name, array in arrays.items():
        if name == "__metadata__" or array.dtype not in _CODES:
            what = "has a reserved name" if array.dtype in _CODES else f"has dtype {array.dtype}"
            raise ValueError(f"`{name}` {what}: a safetensors file cannot hold it.")
    # safetensors writes the raw memory; np.ascontiguousarray would make scalars 1-d.
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    layout = _layout((name, a.dtype, a.shape) for name, a in arrays.items())
    payload = safetensors.numpy.save(arrays, {_DIGEST: f"{_DIGEST} {layout} {_contents(arrays)}"})
    target = os.path.realpath(path)
    temporary = os.path.join(os.path.dirname(target), f".{secrets.token_hex(8)}.tmp")
    try:
        mode = _mode(target)
        try:
            with open(temporary, "xb") as file:
                if mode is not None:
                    os.chmod(temporary, mode)
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_directory(os.path.dirname(target))
    except OSError as error:
        error.filename, error.filename2 = path, None
        raise


def read(
    path: str | os.PathLike[str], accept: Callable[[dict[str, Spec]], None]
) -> dict[str, np.ndarray]:
    """Named arrays of a safetensors file from any writer.

    `accept` is called with the header before any data are read, and raises to reject the file. The
    digest is verified if `write` stored one; PyTorch's own files have none.

    Raises:
        ValueError: for an invalid or incomplete safetensors file, with one sentence that names the
            problem.
        OSError: the file cannot be opened.
    """
    path = os.fsdecode(path)

    def refuse(reason: str) -> NoReturn:
        raise ValueError(f"`{path}` cannot be loaded: {reason}.") from None

    # Opening a FIFO would wait for its writer, and reading a device might never end.
    if not stat.S_ISREG(os.stat(path).st_mode):
        refuse("it is not a regular file")
    with open(path, "rb") as file:
        specs, metadata = _header(file, refuse)
        layout = _layout((name, spec.dtype, spec.shape) for name, spec in specs.items())
        digest = _digest(metadata)
        damaged = "its contents do not match its digest, so it was damaged after it was written"
        if digest is not None and digest.rpartition(" ")[0] != f"{_DIGEST} {layout}":
            refuse(damaged)
        accept(specs)
        arrays = {}
        for name, spec in sorted(specs.items(), key=lambda item: item[1].begin):
            arrays[name] = np.empty(spec.shape, spec.dtype)
            memory = _bytes(arrays[name])
            if file.readinto(memory) != len(memory):
                refuse("it became shorter while it was read")
    if digest is not None and digest.rpartition(" ")[2] != _contents(arrays):
        refuse(damaged)
    for name, array in arrays.items():
        if array.dtype == np.bool_ and set(_bytes(array)) - {0, 1}:
            refuse(f"`{escaped(name)}` is boolean and has bytes other than 0 and 1")
    return arrays


def _header(
    file: BinaryIO, refuse: Callable[[str], NoReturn]
) -> tuple[dict[str, Spec], dict[str, str]]:
    """Header and metadata of a file, whose position is then the first byte of data."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    if size == 0:
        refuse("it is empty")
    if len(start) < 9 or length > size - 8 or start[8:] != b"{":
        # Test for a pickle only here: a valid header of 640 bytes starts with the same two bytes.
        if start.startswith((b"\x80", b"PK\x03\x04")):
            refuse(
                "it is a pickle or a zip archive, as `torch.save` writes them, and opening it "
                "could run any code. Convert it where PyTorch is installed, with "
                "`safetensors.torch.save_file(torch.load(path, weights_only=True), new_path)`"
            )
        refuse("it is truncated, or not a safetensors file")
    if length > _LARGEST_HEADER:
        refuse(f"its header has {length} bytes, and {_LARGEST_HEADER} are allowed")
    try:
        header = json.loads(
            (start[8:] + file.read(length - 1)).decode(), object_pairs_hook=_without_duplicates
        )
    except (ValueError, RecursionError) as error:
        refuse(f"its header is not JSON that safetensors allows ({type(error).__name__})")
    metadata = header.pop("__metadata__", {})
    if not _is_strings(metadata):
        refuse("its metadata is not a mapping of names to strings")
    specs = {}
    for name, entry in header.items():
        if (spec := _spec(entry)) is None:
            refuse(f"the header's entry for `{escaped(name)}` is not valid or not supported")
        specs[name] = spec
    end = 0
    for name, spec in sorted(specs.items(), key=lambda item: item[1][2:]):
        if spec.begin != end:
            refuse(f"the data of `{escaped(name)}` overlap others or leave a gap")
        end = spec.end
    if end != size - 8 - length:
        refuse(f"its header promises {end} bytes of data and {size - 8 - length} are there")
    return specs, metadata


def _spec(entry: Any) -> Spec | None:
    """One entry of the header, or None if safetensors does not allow it."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return None
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    shape, offsets = entry["shape"], entry["data_offsets"]
    if dtype is None or not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        return None
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        return None
    return Spec(dtype, tuple(shape), begin, end)


def escaped(text: str) -> str:
    """A name from a file for printing: without control characters, at most 200 characters."""
    quoted = repr(text if len(text) <= 200 else text[:197] + "...")
    return quoted[1:-1]


def _is_sizes(value: Any) -> bool:
    # 64 is the most dimensions of a NumPy array, and few enough to multiply.
    if not isinstance(value, list) or len(value) > 64:
        return False
    return all(type(n) is int and 0 <= n < 2**63 for n in value)


def _is_strings(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _layout(arrays: Iterable[tuple[str, np.dtype, tuple[int, ...]]]) -> str:
    """Digest of names, dtypes and shapes."""
    lines = sorted([name, _CODES[dtype], *shape] for name, dtype, shape in arrays)
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def _digest(metadata: dict[str, str]) -> str | None:
    """Digest stored by `write`; the empty string if its key or its mark is damaged.

    The digest starts with its own key, so that no single change hides it.
    """
    if _DIGEST in metadata:
        return metadata[_DIGEST]
    return "" if any(text.startswith(f"{_DIGEST} ") for text in metadata.values()) else None


def _contents(arrays: Mapping[str, np.ndarray]) -> str:
    """Digest of the data, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(_bytes(arrays[name]))
    return digest.hexdigest()


def _bytes(array: np.ndarray) -> memoryview:
    """Memory of a C-contiguous array, flat. (A bfloat16 array does not support buffers.)"""
    return array.reshape(-1).view(np.uint8).data


def _mode(target: str) -> int | None:
    """Permissions of the file to be replaced, or None if there is none."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        raise ValueError(f"`{target}` is not a regular file and is not overwritten.")
    return stat.S_IMODE(mode)


def sync_directory(directory: str | os.PathLike[str]) -> None:
    """Make a renaming in the directory durable, on systems that can open directories."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
