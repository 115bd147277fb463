"""Weight files: exchanged with PyTorch, damaged, hostile and interrupted."""

import errno
import json
import os
import pickle
import signal
import stat
import struct
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from flax import nnx

from jaxrnn import files
from jaxrnn.interchange import load_safetensors, save_safetensors, state_dict


def mixed(seed=0):
    """Several dtypes, a scalar, an empty array and non-finite values."""
    rng = np.random.default_rng(seed)
    values = {
        "double": rng.standard_normal((2, 3)),
        "half": jnp.asarray(rng.standard_normal(3), jnp.bfloat16),
        "scalar": np.float32(seed),
        "empty": np.zeros((0, 3)),
        "odd": np.array([np.nan, np.inf, -0.0]),
        "flags": np.array([True, False, True]),
    }
    linear = nnx.Linear(3, 3, rngs=nnx.Rngs(seed))
    return nnx.Dict(linear=linear, **{k: nnx.Param(jnp.asarray(v)) for k, v in values.items()})


def contents(module):
    return {k: (v.dtype, v.shape, v.tobytes()) for k, v in state_dict(module).items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def test_round_trip(path):
    ours, twin = mixed(0), mixed(1)
    save_safetensors(ours, path)
    load_safetensors(twin, str(path))
    assert contents(twin) == contents(ours)
    assert os.listdir(path.parent) == [path.name]
    first = path.read_bytes()
    save_safetensors(twin, path)
    assert path.read_bytes() == first


def test_torch_reads_ours(path):
    ours = mixed()
    save_safetensors(ours, path)
    theirs = safetensors.torch.load_file(path)
    assert theirs["half"].dtype == torch.bfloat16
    assert theirs["scalar"].shape == ()
    for name, array in state_dict(ours).items():
        np.testing.assert_array_equal(theirs[name].double().numpy(), array.astype(np.float64))
    with safetensors.safe_open(path, "np") as file:
        assert list(file.metadata()) == ["jaxrnn.sha256"]


def test_we_read_torchs(path):
    theirs = torch.nn.Linear(3, 3, dtype=torch.bfloat16)
    safetensors.torch.save_file(theirs.state_dict(), path, metadata={"format": "pt"})
    ours = nnx.Linear(3, 3, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    load_safetensors(ours, path)
    weight = theirs.weight.detach().float().numpy()
    np.testing.assert_array_equal(ours.kernel[...].T.astype(jnp.float32), weight)


def test_shared_parameters_of_torch(path):
    theirs = torch.nn.ModuleDict({"a": torch.nn.Embedding(4, 3), "b": torch.nn.Embedding(4, 3)})
    theirs["b"].weight = theirs["a"].weight
    safetensors.torch.save_model(theirs, path)
    ours = nnx.Dict(a=nnx.Embed(4, 3, rngs=nnx.Rngs(0)), b=nnx.Embed(4, 3, rngs=nnx.Rngs(1)))
    ours.b.embedding = ours.a.embedding
    load_safetensors(ours, path)
    np.testing.assert_array_equal(ours.b.embedding[...], theirs["a"].weight.detach().numpy())
    ours.a.embedding[...] += 1
    save_safetensors(ours, path)
    assert list(safetensors.torch.load_file(path)) == ["a.weight"]
    assert safetensors.torch.load_model(theirs, path) == (set(), [])
    np.testing.assert_array_equal(ours.b.embedding[...], theirs["b"].weight.detach().numpy())
    twin = nnx.clone(ours)
    twin.a.embedding[...] += 1
    load_safetensors(twin, path)
    np.testing.assert_array_equal(ours.b.embedding[...], twin.b.embedding[...])


def test_arrays_that_are_not_contiguous(path):
    array = np.arange(12.0).reshape(3, 4)
    files.write(path, {"t": array.T, "f": np.asfortranarray(array), "s": array[::2, ::3]})
    found = safetensors.numpy.load_file(path)
    for name, expected in {"t": array.T, "f": array, "s": array[::2, ::3]}.items():
        np.testing.assert_array_equal(found[name], expected)


@pytest.mark.parametrize("dtype", files._DTYPES.values(), ids=str)
def test_every_dtype(path, dtype):
    array = np.array([0, 1, 1]).astype(dtype)
    files.write(path, {"a": array})
    found = files.read(path, lambda specs: None)["a"]
    assert (found.dtype, found.tobytes()) == (array.dtype, array.tobytes())


def test_flipped_bits(path):
    """Every flipped bit is detected, including those of the digest's own key."""
    ours, twin = mixed(0), mixed(1)
    before = contents(twin)
    save_safetensors(ours, path)
    whole = path.read_bytes()
    metadata = range(whole.index(b"__metadata__"), whole.index(b"}", 8))
    for bit in {*range(0, 8 * len(whole), 7), *range(8 * metadata[0], 8 * metadata[-1] + 8)}:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot be loaded"):
            files.read(path, lambda specs: None)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="do not match its digest"):
        load_safetensors(twin, path)
    path.write_bytes(whole.replace(b"linear.bias", b"linear.bios"))
    with pytest.raises(ValueError, match="do not match its digest"):
        load_safetensors(twin, path)
    assert contents(twin) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"shape":[2,3]', b'"shape":[3,2]'),
        (b'"shape":[6,1]', b'"shape":[1,6]'),
        (b'"dtype":"F32"', b'"dtype":"I32"'),
        (b'"one"', b'"two"'),
    ],
)
def test_the_digest_covers_the_header(path, old, new):
    arrays = {"one": np.arange(6, dtype=np.float32).reshape(2, 3), "col": np.zeros((6, 1))}
    files.write(path, arrays)
    whole = path.read_bytes()
    assert whole.count(old) == 1
    path.write_bytes(whole.replace(old, new))
    with pytest.raises(ValueError, match="do not match its digest"):
        files.read(path, lambda specs: None)


def test_a_renaming_is_made_durable(path, monkeypatch):
    """The file is synced before it is renamed, and then the directory is synced."""
    events = []
    fsync, replace = os.fsync, os.replace

    def record_sync(descriptor):
        status = os.fstat(descriptor)
        same = status.st_ino == path.parent.stat().st_ino
        events.append("directory" if stat.S_ISDIR(status.st_mode) and same else "file")
        fsync(descriptor)

    def record_rename(*places):
        events.append("rename")
        replace(*places)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_rename)
    save_safetensors(mixed(), path)
    assert events == ["file", "rename", "directory"]


def test_options_of_loading(path):
    theirs = torch.nn.Linear(3, 2)
    named = {"model." + name: value.half() for name, value in theirs.state_dict().items()}
    safetensors.torch.save_file(named | {"step": torch.ones(())}, path)
    ours = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r'after `model\.`\. Pass `prefix="model\."`'):
        load_safetensors(ours, path)
    assert load_safetensors(ours, path, prefix="model.") == ([], [])
    weight = theirs.weight.detach().half().float().numpy()
    np.testing.assert_array_equal(ours.kernel[...].T, weight)
    keys = load_safetensors(
        ours, path, prefix="", strict=False, rename=lambda n: n.replace("model.w", "w")
    )
    assert keys == (["bias"], ["model.bias", "step"])


def test_a_file_of_many_hostile_names(path):
    names = {f"t{i}\x1b[31m": np.zeros(0, np.float32) for i in range(10_000)}
    files.write(path, names)
    with pytest.raises(ValueError, match=r"`t0\\x1b\[31m` is in .*\n.*\n") as error:
        load_safetensors(nnx.Dict(), path)
    assert "\x1b" not in str(error.value)
    assert str(error.value).endswith("\n... and 9,990 more.")
    path.write_bytes(header('{"\x1b[31m":1}'.replace("\x1b", "\\u001b")))
    with pytest.raises(ValueError, match=r"`\\x1b\[31m` is not valid"):
        files.read(path, lambda specs: None)


def test_truncation(path):
    ours, twin = mixed(0), mixed(1)
    before = contents(twin)
    save_safetensors(ours, path)
    whole = path.read_bytes()
    for length in (*range(16), *range(16, len(whole), 5), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cannot be loaded: it"):
            load_safetensors(twin, path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="its header promises"):
        load_safetensors(twin, path)
    assert contents(twin) == before


def header(text, data=b"", length=None):
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(**changes):
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    return header(json.dumps({"w": {k: v for k, v in one.items() if v is not None}}), bytes(8))


def two(name, begin, end):
    one = '"%s":{"dtype":"F32","shape":[2],"data_offsets":[%d,%d]}'
    return header("{" + one % ("w", 0, 8) + "," + one % (name, begin, end) + "}", bytes(end))


HOSTILE = {
    "empty file": b"",
    "no header": struct.pack("<Q", 0),
    "header of 2**63": header("{}", length=2**63),
    "header of all": header("{}", length=2**64 - 1),
    "not an object": header("[]"),
    "not JSON": header('{"w":'),
    "not UTF-8": header(b'{"\xff":1}'),
    "UTF-16": header('{"w":1}'.encode("utf-16-le")),
    "deep": header('{"w":' * 10**5 + "1" + "}" * 10**5),
    "deep lists": header('{"w":' + "[" * 10**6 + "]" * 10**6 + "}"),
    "long number": header('{"w":' + "9" * 10**5 + "}"),
    "long shape": entry(shape=[2**62] * 10**5),
    "66 dimensions": entry(shape=[1] * 65 + [2]),
    "huge": entry(shape=[2**40], data_offsets=[0, 2**42]),
    "overflow": entry(shape=[2**32, 2**32]),
    "NaN": header('{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', bytes(8)),
    "float": entry(shape=[2.0]),
    "boolean": entry(shape=[True, 2]),
    "negative": entry(shape=[-1, -2]),
    "reversed": entry(data_offsets=[8, 0]),
    "one offset": entry(data_offsets=[8]),
    "unknown dtype": entry(dtype="F4"),
    "dtype a list": entry(dtype=["F32"]),
    "no shape": entry(shape=None),
    "entry a number": header('{"w":1}'),
    "gap": entry(data_offsets=[4, 12]) + bytes(4),
    "overlap": two("v", 4, 12),
    "same place": two("v", 0, 8),
    "twice": two("w", 0, 8),
    "metadata a number": header('{"__metadata__":{"a":1}}'),
    "metadata a list": header('{"__metadata__":[]}'),
    "pickle": pickle.dumps({"w": np.zeros(2)}),
    "old pickle": pickle.dumps({"w": 1}, protocol=2),
    "text": b"<html><body>404 Not Found</body></html>",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files(path, data):
    path.write_bytes(data)
    with pytest.raises(ValueError, match="cannot be loaded: ") as error:
        files.read(path, lambda specs: None)
    assert len(str(error.value).splitlines()) == 1
    assert error.value.__suppress_context__


def test_only_files_that_safetensors_accepts_are_read(path):
    """Headers with random changes: no file is read that the safetensors library rejects."""
    rng = np.random.default_rng(0)
    whole = safetensors.numpy.save({"a": np.arange(3.0), "b": np.arange(2, dtype=np.int8)})
    size, taken = 8 + int.from_bytes(whole[:8], "little"), 0
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(rng.integers(1, 3)):
            damaged[rng.integers(8, size)] = rng.choice(list(b'0123456789{}[]",:abFI \x00\xff'))
        path.write_bytes(damaged)
        try:
            ours = files.read(path, lambda specs: None)
        except ValueError:
            continue
        theirs = safetensors.numpy.load(bytes(damaged))
        taken += 1
        assert {k: (v.dtype, v.tobytes()) for k, v in ours.items()} == {
            k: (v.dtype, v.tobytes()) for k, v in theirs.items()
        }
    assert taken > 20


def test_a_header_too_large(path, monkeypatch):
    monkeypatch.setattr(files, "_LARGEST_HEADER", 20)
    path.write_bytes(entry())
    with pytest.raises(ValueError, match="its header has 61 bytes, and 20 are allowed"):
        files.read(path, lambda specs: None)


def test_pickles_are_never_opened(path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(path.parent / "harm"),)

    torch.save({"w": Harmful()}, path)
    assert zipfile.is_zipfile(path)
    with pytest.raises(ValueError, match=r"could run any code\. Convert it .* with"):
        load_safetensors(mixed(), path)
    assert not (path.parent / "harm").exists()


def test_boolean_bytes(path):
    path.write_bytes(header('{"w":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}', b"\1\2"))
    with pytest.raises(ValueError, match="`w` is boolean and has bytes other than 0 and 1"):
        files.read(path, lambda specs: None)


def test_a_file_that_does_not_fit_is_not_read(path):
    """A sparse file with a terabyte of zeros: the header is compared before the data are read."""
    text = json.dumps({"weight": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}})
    path.write_bytes(header(text))
    os.truncate(path, 8 + len(text) + 2**40)
    with pytest.raises(ValueError, match=r"`weight` has shape \(274877906944,\) in the given"):
        load_safetensors(nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0)), path)


def test_files_that_are_not_regular(path, tmp_path):
    os.mkfifo(path)
    for place in (path, tmp_path, "/dev/zero", "/dev/full"):
        with pytest.raises(ValueError, match="it is not a regular file"):
            load_safetensors(mixed(), place)
        with pytest.raises(ValueError, match="is not a regular file and is not overwritten"):
            save_safetensors(mixed(), place)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert os.listdir(tmp_path) == [path.name]
    with pytest.raises(FileNotFoundError):
        load_safetensors(mixed(), tmp_path / "absent")
    with pytest.raises(FileNotFoundError) as error:
        save_safetensors(mixed(), tmp_path / "absent" / "file")
    assert error.value.filename == str(tmp_path / "absent" / "file")


@pytest.mark.parametrize("step", ["open", "chmod", "fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=repr)
def test_a_failure_leaves_the_old_file(path, monkeypatch, step, failure):
    save_safetensors(mixed(0), path)
    before = path.read_bytes()

    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(files if step == "open" else os, step, fail, raising=False)
    with pytest.raises(type(failure)):
        save_safetensors(mixed(1), path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_full_disk(path):
    """A file size limit, enforced by the system, in a separate process."""
    code = """
import resource, signal, sys
from flax import nnx
from jaxrnn.interchange import save_safetensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    save_safetensors(nnx.Linear(100, 100, rngs=nnx.Rngs(0)), sys.argv[1])
except OSError as error:
    sys.exit(7 if error.filename == sys.argv[1] else 1)
"""
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", code, path], check=False)
    assert done.returncode == 7
    assert (path.read_bytes(), os.listdir(path.parent)) == (b"old", [path.name])


def test_a_killed_writer(path):
    """A writer killed repeatedly at random moments always leaves a complete file."""
    code = """
import sys
from flax import nnx
from jaxrnn.interchange import save_safetensors
models = [nnx.Linear(300, 300, rngs=nnx.Rngs(seed)) for seed in range(2)]
for n in range(10**6):
    save_safetensors(models[n % 2], sys.argv[1])
    print(n, flush=True)
"""
    twin = nnx.Linear(300, 300, rngs=nnx.Rngs(2))
    for lines in (1, 2):
        command = [sys.executable, "-c", code, path]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            for _ in range(lines):
                writer.stdout.readline()
            for _ in range(20):
                load_safetensors(twin, path)
            writer.send_signal(signal.SIGKILL)
        load_safetensors(twin, path)


def test_permissions_and_links(path, tmp_path):
    old = os.umask(0o027)
    try:
        save_safetensors(mixed(0), path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to(path.name)
    save_safetensors(mixed(1), link)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    twin = mixed(2)
    load_safetensors(twin, path)
    assert contents(twin) == contents(mixed(1))


def test_arrays_that_a_file_cannot_hold(path):
    with pytest.raises(ValueError, match="`w` has dtype complex128: a safetensors file cannot"):
        save_safetensors(nnx.Dict(w=nnx.Param(jnp.ones(2, complex))), path)
    with pytest.raises(ValueError, match="`__metadata__` has a reserved name"):
        save_safetensors(nnx.Dict(__metadata__=nnx.Param(jnp.ones(2))), path)
    with pytest.raises(ValueError, match="`weight` is traced"):
        jax.jit(lambda m: save_safetensors(m, path))(nnx.Embed(2, 2, rngs=nnx.Rngs(0)))
    assert not path.exists()
