"""PyTorch's files without PyTorch: what torch.save wrote comes back, and nothing ever runs.

The files in `tests/interop/` were made by torch 2.13 (`make_fixtures.py`); hostile ones are made
here.
"""

import io
import os
import pathlib
import pickle
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from eqdiff import interop
from eqdiff.interop.edm._file import read_edm


FOLDER = pathlib.Path(__file__).parent / "interop"

BASE = np.arange(24, dtype=np.float32).reshape(4, 6)
TENSORS = {
    "float32": BASE,
    "transposed": BASE.T,
    "strided": BASE[1:, 1::2],
    "parameter": np.array([[1.5, -2.0]], np.float32),
    "float64": np.array([1e-300, 2.5]),
    "float16": np.array([0.5, -65504.0], np.float16),
    "bfloat16": np.array([1.5, -3e38]).astype(jnp.bfloat16),
    "int64": np.array([2**40, -1]),
    "int32": np.array([7], np.int32),
    "int16": np.array([-7], np.int16),
    "int8": np.array([-128], np.int8),
    "uint8": np.array([255], np.uint8),
    "bool": np.array([True, False]),
    "scalar": np.array(3.25, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}
PLAIN = {
    "plain": [1, 2.5, "text", None, True, (1, -(2**70)), b"bytes", {"a": {1: 2}}],
    "size": (2, 3),
    "device": "cpu",
    "numpy": 0.1,
}


@pytest.mark.parametrize("name", ["zip.pt", "legacy.pt"])
def test_everything_comes_back(name):
    value = interop.read_torch(FOLDER / name)
    assert list(value) == [*TENSORS, *PLAIN]
    for key, expected in TENSORS.items():
        assert value[key].dtype == expected.dtype and value[key].shape == expected.shape, key
        np.testing.assert_array_equal(value[key], expected)
        with pytest.raises(ValueError, match="read-only"):
            value[key][...] = 0
    assert {key: value[key] for key in PLAIN} == PLAIN


def test_the_other_order_of_bytes():
    value = interop.read_torch(FOLDER / "big_endian.pt")
    np.testing.assert_array_equal(value["a"], np.array([1.0, -2.5], np.float32))
    np.testing.assert_array_equal(value["b"], [1, 258])


def test_objects_are_refused_by_name():
    with pytest.raises(
        ValueError, match=r"names torch\.nn\.modules\.linear\.Linear, which is neither"
    ):
        interop.read_torch(FOLDER / "object.pt")


# Hostile files. Each would make a file called `canary` if anything of it ran.


class Canary:
    """What a pickle of it calls."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def _canary(path):
    return f"touch {path / 'canary'}"


def _archive(path, pickled, entries=(), **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("x/data.pkl", pickled)
        for name, content in entries:
            archive.writestr(f"x/{name}", content)
    return path


def _global(module, name):
    return f"c{module}\n{name}\n".encode()


def _tensor(numel, offset, shape, strides, kind="FloatStorage", inner=b""):
    """A pickle of one tensor, by hand: what no pickler would write."""

    def number(n):
        return pickle.dumps(n, 2)[2:-1]

    def numbers(ns):
        return b"(" + b"".join(number(n) for n in ns) + b"t"

    identity = (
        b"(X\x07\x00\x00\x00storage"
        + _global("torch", kind)
        + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    )
    identity += number(numel) + b"tQ"
    call = _global("torch._utils", "_rebuild_tensor_v2") + b"(" + identity + number(offset)
    return b"\x80\x02" + call + numbers(shape) + numbers(strides) + b"\x89}t" + b"R" + inner + b"."


def _hostile_tensors():
    return {
        "shape beyond the storage": _tensor(2, 0, (3,), (1,)),
        "offset beyond the storage": _tensor(2, 2, (1,), (1,)),
        "strides beyond the storage": _tensor(2, 0, (2,), (2,)),
        "negative strides": _tensor(2, 1, (2,), (-1,)),
        "negative shape": _tensor(2, 0, (-1,), (1,)),
        "negative offset": _tensor(2, -1, (1,), (1,)),
        "overlapping": _tensor(2, 0, (2**40,), (0,)),
        "absurd shape": _tensor(2, 0, (2**62, 2**62), (0, 0)),
        "many axes": _tensor(2, 0, (1,) * 65, (1,) * 65),
        "storage beyond the entry": _tensor(3, 0, (3,), (1,)),
        "absurd storage": _tensor(2**61, 0, (2,), (1,)),
        "negative storage": _tensor(-2, 0, (0,), (1,)),
        "a storage of a class": _tensor(2, 0, (2,), (1,), kind="nn"),
    }


def _hostile(tmp_path):
    shell = _canary(tmp_path)
    touch = str(tmp_path / "canary")
    command = b"(X" + struct.pack("<I", len(shell)) + shell.encode()
    system = _global(os.system.__module__, "system")
    good = _tensor(2, 0, (2,), (1,))[2:-1]
    return {
        "os.system": pickle.dumps(Canary(os.system, shell), 2),
        "STACK_GLOBAL": pickle.dumps(Canary(os.system, shell), 4),
        "builtins.eval": pickle.dumps(Canary(eval, f"open({touch!r}, 'w')"), 4),
        "builtins.exec": pickle.dumps(Canary(exec, f"open({touch!r}, 'w')"), 2),
        "builtins.getattr": pickle.dumps(Canary(getattr, "text", "upper"), 4),
        "__import__": pickle.dumps(Canary(__import__, "os"), 4),
        "open": pickle.dumps(Canary(open, touch, "w"), 4),
        "INST": b"(S'" + shell.encode() + b"'\nios\nsystem\n.",
        "OBJ": b"(" + system + command[1:] + b"o.",
        "NEWOBJ": b"\x80\x02" + system + command + b"t\x81.",
        "a class to be made": b"\x80\x02"
        + _global("collections", "OrderedDict")
        + command
        + b"t\x81.",
        "REDUCE of a result": b"\x80\x02"
        + _global("torch", "Size")
        + b"(lt"
        + b"R"
        + command
        + b"tR.",
        "REDUCE of a tensor": b"\x80\x02" + good + command + b"tR.",
        "EXT1": b"\x80\x02\x82\x01" + command + b"tR.",
        "EXT4": b"\x80\x02\x84\x01\x00\x00\x00" + command + b"tR.",
        # BUILD calls __setstate__ of what is on the stack, or sets attributes: here a function's.
        "BUILD on a function": b"\x80\x02"
        + _global("torch._utils", "_rebuild_parameter")
        + b"}X\x0c\x00\x00\x00__defaults__(lt"
        + b"sb.",
        "BUILD on a tensor": b"\x80\x02" + good + b"}X\x05\x00\x00\x00shapeK\x01sb.",
        "a name with a dot": b"\x80\x02" + _global("torch", "Size.__init__") + b")R.",
        "a submodule": b"\x80\x02" + _global("torch._utils", "os.system") + command + b"tR.",
        "torch.load": b"\x80\x02" + _global("torch", "load") + command + b"tR.",
        "nested bytes": b"\x80\x02"
        + _global("torch.storage", "_load_from_bytes")
        + command
        + b"tR.",
        "Python 2's names": b"\x80\x02" + _global("__builtin__", "eval") + command + b"tR.",
        "a buffer out of band": b"\x80\x05\x97.",
        **_hostile_tensors(),
        "itself within itself": b"\x80\x02]q\x00h\x00a.",
        # Called with itself, 100 000 lists deep, and a key of 2^64 parts: no look at them may last.
        "deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b")R.",
        "wide": b"\x80\x02})" + b"2\x86" * 64 + b"K\x00s.",
    }


@pytest.mark.parametrize("name", list(_hostile(pathlib.Path("/nowhere"))))
def test_hostile_files_are_refused_and_do_not_run(name, tmp_path):
    pickled = _hostile(tmp_path)[name]
    entries = [("data/0", np.zeros(2, np.float32).tobytes())]
    _archive(tmp_path / "hostile.pt", pickled, entries)
    with pytest.raises(ValueError, match=r"hostile\.pt"):
        interop.read_torch(tmp_path / "hostile.pt")
    # The same, as the object of a file in the older format and as a pickle of EDM.
    start = b"".join(
        pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    )
    (tmp_path / "hostile.pt").write_bytes(
        start + pickled + pickle.dumps(["0"], 2) + struct.pack("<q", 2) + bytes(8)
    )
    with pytest.raises(ValueError, match=r"hostile\.pt"):
        interop.read_torch(tmp_path / "hostile.pt")
    (tmp_path / "hostile.pkl").write_bytes(pickled)
    with pytest.raises(ValueError, match=r"hostile\.pkl"):
        read_edm(tmp_path / "hostile.pkl")
    assert not (tmp_path / "canary").exists()


def test_the_canary_would_sing(tmp_path):
    # Python's own interpreter runs them: the tests above prove something.
    for name in ("os.system", "STACK_GLOBAL", "INST"):
        pickle.loads(_hostile(tmp_path)[name])
        (tmp_path / "canary").unlink()


def test_the_name_that_a_file_asks_for_is_said(tmp_path):
    _archive(tmp_path / "a.pt", pickle.dumps(Canary(os.system, "true"), 4))
    with pytest.raises(
        ValueError,
        match=rf"a\.pt names {os.system.__module__}\.system.*Nothing of the file was run",
    ):
        interop.read_torch(tmp_path / "a.pt")
    _archive(tmp_path / "b.pt", b"\x80\x02\x82\x01.")
    with pytest.raises(ValueError, match=r"uses the pickle instruction EXT1"):
        interop.read_torch(tmp_path / "b.pt")


def test_a_pickle_inside_a_storage(tmp_path):
    """`_load_from_bytes` of EDM's pickles is handed a whole file of torch.save."""
    inner = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {}))
    inner += pickle.dumps(Canary(os.system, _canary(tmp_path)), 2)
    call = _global("torch.storage", "_load_from_bytes")
    data = b"B" + struct.pack("<I", len(inner)) + inner
    (tmp_path / "nested.pkl").write_bytes(b"\x80\x03" + call + data + b"\x85R.")
    with pytest.raises(ValueError, match=r"nested\.pkl \(a storage inside of it\) names .*system"):
        read_edm(tmp_path / "nested.pkl")
    assert not (tmp_path / "canary").exists()


def test_bombs(tmp_path):
    # Ten megabytes of zeros in ten kilobytes: torch.save never compresses.
    path = _archive(
        tmp_path / "bomb.pt",
        _tensor(2_500_000, 0, (2_500_000,), (1,)),
        [("data/0", bytes(10_000_000))],
        compression=zipfile.ZIP_DEFLATED,
    )
    assert path.stat().st_size < 20_000
    with pytest.raises(ValueError, match="is compressed, which torch.save does not do"):
        interop.read_torch(path)
    # A length that is not there, and lists that double a hundred times.
    _archive(tmp_path / "a.pt", b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.")
    with pytest.raises(ValueError, match="truncated"):
        interop.read_torch(tmp_path / "a.pt")
    laughs = b"\x80\x02]q\x00" + b"".join(
        b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(50)
    )
    _archive(tmp_path / "b.pt", laughs + b".")
    value = interop.read_torch(tmp_path / "b.pt")
    assert value[0] is value[1]


@pytest.mark.parametrize("name", ["zip.pt", "legacy.pt", "edm.pkl", "score_sde.pth"])
def test_truncated_files(name, tmp_path):
    whole = (FOLDER / name).read_bytes()
    read = read_edm if name == "edm.pkl" else interop.read_torch
    path = tmp_path / name
    for size in (
        0,
        1,
        3,
        10,
        100,
        len(whole) // 3,
        len(whole) // 2,
        len(whole) - 5,
        len(whole) - 1,
    ):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=name):
            read(path)


@pytest.mark.parametrize("name", ["zip.pt", "legacy.pt"])
def test_damaged_files_are_errors_or_data(name, tmp_path):
    """Any byte may be wrong: the result is a value or a ValueError, never anything else."""
    whole = bytearray((FOLDER / name).read_bytes())
    rng = np.random.default_rng(0)
    path = tmp_path / name
    refused = 0
    for at in rng.integers(0, len(whole), 80):
        damaged = bytearray(whole)
        damaged[at] = int(rng.integers(0, 256))
        path.write_bytes(damaged)
        try:
            interop.read_torch(path)
        except ValueError:
            refused += 1
    assert refused > 10


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file at"):
        interop.read_torch(tmp_path / "none.pt")
    path = tmp_path / "text.pt"
    path.write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pt is truncated, damaged or not a pickle"):
        interop.read_torch(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"text\.pt is not a file of torch\.save"):
        interop.read_torch(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(ValueError, match=r"not one of torch\.save"):
        interop.read_torch(path)
    data = io.BytesIO((FOLDER / "zip.pt").read_bytes())
    with zipfile.ZipFile(data) as old:
        kept = {
            i.filename: old.read(i) for i in old.infolist() if not i.filename.endswith("data/3")
        }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in kept.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="is damaged: it lacks zip/data/3"):
        interop.read_torch(path)
