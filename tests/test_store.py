"""Chunks in a folder: damage is noticed, another's folder refused, and nothing left behind."""

import io
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqdiff as eqd
from eqdiff._atomic import create_whole, remove_stale, write_whole
from eqdiff._store import pack, Store, unpack


KEY = jax.random.key(7)
X = np.linspace(-1, 1, 21, dtype=np.float32).reshape(7, 3)
CALL = {"call": "mine", "num": 7}


def noisy(x, key):
    return 2 * x + jax.random.normal(key, x.shape, x.dtype)


def run(folder, fn=noisy, data=X, **options):
    return eqd.map_examples(fn, data, key=KEY, batch_size=2, folder=folder, **options)


@pytest.fixture
def count(monkeypatch):
    """Which chunks are computed."""
    chunks, original = [], eqd._chunks.program

    def counted(*args):
        if not isinstance(args[2], jax.core.Tracer):
            chunks.append(int(np.asarray(args[2])[0]))
        return original(*args)

    monkeypatch.setattr(eqd._chunks, "program", counted)
    return chunks


def test_every_damaged_byte_is_noticed(tmp_path):
    leaves = [np.arange(3, dtype=np.int16), np.array([[0.5]], jnp.bfloat16), np.ones((2, 0))]
    store = Store(tmp_path)
    store.create(CALL)
    store.write(4, "of this", leaves)
    for found in (store.read(4, "of this"), unpack(pack(leaves))):
        assert [a.dtype for a in found] == [a.dtype for a in leaves]
        assert all(np.array_equal(a, b) for a, b in zip(found, leaves, strict=True))
    assert store.read(4, "of that") is None and store.read(2, "of this") is None
    (path,) = tmp_path.glob("*.npz")
    content = path.read_bytes()
    with np.load(io.BytesIO(content)) as file:
        np.testing.assert_array_equal(file["leaf_0"], leaves[0])
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert store.read(4, "of this") is None
        path.write_bytes(content[:place])
        assert store.read(4, "of this") is None


def test_a_chunk_belongs_to_its_call_place_and_data(tmp_path, count):
    whole = run(tmp_path)
    files = sorted(tmp_path.glob("*.npz"))
    # Each other's chunks, whole and of this very call.
    contents = [file.read_bytes() for file in files]
    files[0].write_bytes(contents[1])
    files[1].write_bytes(contents[0])
    count.clear()
    np.testing.assert_array_equal(run(tmp_path), whole)
    assert count == [0, 2]
    # An example that was mended: only its chunk is computed again.
    mended = X.copy()
    mended[5] = 3.0
    count.clear()
    found = run(tmp_path, data=mended)
    assert count == [4]
    np.testing.assert_array_equal(found, run(None, data=mended))


def scaled(weights):
    return lambda x, key: weights * x


class Power(eqx.Module):
    power: int

    def __call__(self, x, key):
        return x**self.power


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        (scaled(np.float32([2, 2, 2])), scaled(np.float32([2, 2, 3])), "weights"),
        (scaled(2.0), scaled(3.0), "program"),
        (Power(2), Power(3), "program"),
    ],
    ids=["weights", "program", "settings"],
)
def test_another_function_of_the_same_shapes_is_refused(first, second, names, tmp_path):
    run(tmp_path, first)
    with pytest.raises(ValueError, match=f"results of another call: {names} is '") as error:
        run(tmp_path, second)
    assert "num is" not in str(error.value)


@pytest.mark.slow
def test_a_function_is_the_same_in_another_process(tmp_path):
    """The order of sets and the places of objects differ between processes."""
    script = (
        "import sys, jax, numpy as np, eqdiff as eqd\n"
        "flow = eqd.ProbabilityFlow(num_steps=2)\n"
        "denoiser = eqd.Denoiser(lambda c, x, args, key: jax.nn.gelu(x), eqd.VPSDE())\n"
        "def bits(x, key):\n"
        "    z = flow.encode(denoiser, x)\n"
        "    return eqd.score(denoiser, 0.5, z)\n"
        "key, place = jax.random.key(0), sys.argv[1]\n"
        "eqd.map_examples(bits, np.ones((3, 2)), key=key, folder=place)\n"
        "eqd.generate(flow, denoiser, 3, (2,), key=key, folder=place + '/generate')\n"
    )
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", script, str(tmp_path)]
        subprocess.run(command, env=environment, check=True)


def test_folders_of_other_versions_and_damaged_ones_are_refused(tmp_path):
    whole = run(tmp_path)
    path = tmp_path / "examples.json"
    description = json.loads(path.read_text())
    old = {name: value for name, value in description.items() if name != "format"}
    for found, number in ((old, 1), (description | {"format": 3}, 3)):
        path.write_text(json.dumps(found))
        with pytest.raises(ValueError, match=rf"another version .*\(format {number}, and .* 2\)"):
            run(tmp_path)
    for content in (b"", b"\xff", b"[1]", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"examples\.json is damaged .*delete this one file"):
            run(tmp_path)
    # As it says, nothing is lost by that.
    path.unlink()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.npz")}
    np.testing.assert_array_equal(run(tmp_path), whole)
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.npz")}


def test_a_disk_that_is_full_loses_nothing(tmp_path, count):
    """A limit on the size of files, which the system enforces as it does a full disk."""
    data = np.arange(7 * 4096, dtype=np.float32).reshape(7, 4096)
    options = {"key": KEY, "folder": tmp_path}
    eqd.map_examples(noisy, data, batch_size=2, **options)
    (tmp_path / "examples_000000004.npz").unlink()
    (tmp_path / "examples_000000006.npz").unlink()
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large, so examples 4 to 5 could not .*kept"):
            eqd.map_examples(noisy, data, batch_size=2, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    names = ["examples.json", "examples_000000000.npz", "examples_000000002.npz"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    count.clear()
    found = eqd.map_examples(noisy, data, batch_size=2, **options)
    assert count == [4, 6]
    np.testing.assert_array_equal(found, eqd.map_examples(noisy, data, key=KEY, batch_size=2))


def test_what_killed_processes_left_is_deleted(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", "pass"])
    killed.wait()
    seen = []
    write_whole(tmp_path / "file", lambda file: seen.append(file.name))
    mine = pathlib.Path(seen[0])
    dead = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{killed.pid}-"))
    other = tmp_path / f".file.elsewhere-{os.getpid()}-{'0' * 32}.tmp"
    fresh = tmp_path / f".file.elsewhere-{os.getpid()}-{'1' * 32}.tmp"
    notes = tmp_path / ".notes.tmp"
    for path in (mine, dead, other, fresh, notes):
        path.write_bytes(b"")
    os.utime(other, (0, 0))
    remove_stale(tmp_path)
    assert set(tmp_path.iterdir()) == {tmp_path / "file", mine, fresh, notes}


def test_one_of_two_creates(tmp_path):
    path = tmp_path / "deep" / "file"
    assert create_whole(path, b"first") == b"first" == create_whole(path, b"second")
    assert list(path.parent.iterdir()) == [path]


def test_two_jobs_at_one_folder_are_harmless(tmp_path, monkeypatch, count):
    """The second does all its work in the middle of the first's."""
    whole, original, inner = run(None), eqd._chunks.program, []

    def program(*args):
        if not isinstance(args[2], jax.core.Tracer) and int(np.asarray(args[2])[0]) == 4:
            monkeypatch.setattr(eqd._chunks, "program", original)
            inner.append(run(tmp_path))
        return original(*args)

    monkeypatch.setattr(eqd._chunks, "program", program)
    count.clear()
    np.testing.assert_array_equal(run(tmp_path), whole)
    np.testing.assert_array_equal(inner[0], whole)
    # What the second has finished, the first reads.
    assert sorted(count) == [0, 2, 2, 4, 4, 6]
    assert len(list(tmp_path.iterdir())) == 5


def test_a_mesh_is_used_with_all_its_axes(monkeypatch):
    whole, used, original = run(None), [], eqd._chunks.program

    def program(*args):
        if not isinstance(args[2], jax.core.Tracer):
            used.append((len(args[2]), [s.data.shape for s in args[2].addressable_shards]))
        return original(*args)

    monkeypatch.setattr(eqd._chunks, "program", program)
    mesh = jax.make_mesh((1, 2), ("data", "shard"))
    found = eqd.map_examples(noisy, X, key=KEY, batch_size=3, mesh=mesh)
    np.testing.assert_allclose(found, whole, rtol=1e-6)
    assert used == [(4, [(2,), (2,)])] * 2
