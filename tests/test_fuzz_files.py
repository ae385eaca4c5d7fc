"""Files with any byte wrong, and descriptions that ask for anything, are errors of one kind.

Each case is drawn from a seed. What comes of it is the same weights as before, or a `ValueError` of
about a thousand letters that names the file; in files with checksums nothing else ever.
"""

import json
import pathlib
import random
import time

import equinox as eqx
import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import eqdiff as eqd
from eqdiff import interop


HERE = pathlib.Path(__file__).parent
MODELS = ("unet_song.safetensors", "schedule_learned.safetensors", "unet_dit.safetensors")
# What a description may say where it said something else.
VALUES = [
    *(2**62, -1, 0, 10**5, 10**300, 1e308, float("nan"), None, True, "x", 10**5 * "x", [], {}),
    *({"tuple": []}, {"tuple": [10**4] * 10**4}, {"dtype": "f4,f4"}, {"tensor": "net/x"}),
    {"class": "eqdiff.VPSDE", "arguments": {}},
    {"class": "eqdiff.nn.MLP", "arguments": {"in_size": 2, "out_size": 2, "depth": 10**5}},
    {"class": 10**5 * "x", "arguments": {}},
]


def refused(load, path) -> bool:
    """Whether the file is one of the errors that it may be, in bounded time."""
    start = time.monotonic()
    try:
        load(path)
    except ValueError as e:
        assert path.name in str(e) and len(str(e)) < 1000 + len(str(path)), str(e)[:2000]
        return True
    finally:
        assert time.monotonic() - start < 10
    return False


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """One bit, one byte, a few bytes of the beginning, or the end is wrong."""
    data, size = bytearray(whole), len(whole)
    kind = rng.randrange(4)
    if kind == 0:
        data[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[rng.randrange(size)] = rng.randrange(256)
    elif kind == 2:
        for _ in range(rng.randrange(2, 20)):
            data[rng.randrange(min(size, 3000))] = rng.randrange(256)
    else:
        del data[rng.randrange(size) :]
    return bytes(data)


@pytest.mark.parametrize("name", MODELS)
def test_no_damage_goes_unnoticed(name, tmp_path):
    path, rng = tmp_path / "model", random.Random(name)
    saved = eqd.load_model(HERE / "models" / name)
    eqd.save_model(path, saved)
    whole, noticed = path.read_bytes(), 0
    for _ in range(100):
        path.write_bytes(damaged(whole, rng))
        if refused(eqd.load_model, path):
            noticed += 1
        else:
            assert eqx.tree_equal(eqd.load_model(path), saved, typematch=True)
    assert noticed > 90


def places(value, path=()):
    """Every place in nested dictionaries and lists."""
    yield path
    parts = dict(enumerate(value)) if isinstance(value, list) else value
    for key, part in parts.items() if isinstance(parts, dict) else ():
        yield from places(part, (*path, key))


@pytest.mark.parametrize("name", MODELS)
def test_no_description_asks_for_more_than_there_is(name, tmp_path):
    path, rng = tmp_path / "model", random.Random(name)
    with safetensors.safe_open(HERE / "models" / name, "numpy") as file:
        metadata, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}
    count = 0
    for _ in range(30):
        model = json.loads(metadata["model"])
        *outer, last = rng.choice([place for place in places(model) if place])
        at = model
        for key in outer:
            at = at[key]
        at[last] = rng.choice(VALUES)
        changed = metadata | {"model": json.dumps(model)}
        safetensors.numpy.save_file(tensors, path, changed)
        count += refused(eqd.load_model, path)
    assert count > 15


FILES = {
    "zip.pt": interop.read_torch,
    "legacy.pt": interop.read_torch,
    "flax_ncsnpp": interop.read_flax,
    "edm.pkl": interop.load_edm,
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_other_projects(name, tmp_path):
    path, rng = tmp_path / name, random.Random(name)
    whole = (HERE / "interop" / name).read_bytes()
    saved = jax.tree.leaves(interop.read_torch(HERE / "interop" / name)) if name == "zip.pt" else []
    noticed = 0
    # A network is built of each pickle, of the others nothing.
    count = 10 if name == "edm.pkl" else 60
    for _ in range(count):
        path.write_bytes(damaged(whole, rng))
        if refused(FILES[name], path):
            noticed += 1
        elif saved:
            # An archive has checksums.
            same = map(np.array_equal, jax.tree.leaves(interop.read_torch(path)), saved)
            assert all(same)
    assert noticed > count // 4


def test_what_a_pickle_nests_is_never_written_out(tmp_path):
    path = tmp_path / "bomb.pkl"
    nested = b")" + 60 * b"2\x86"
    device, size = b"ctorch\ndevice\n", b"ctorch\nSize\n"
    for name, program in {
        "a module's name": b"\x80\x04" + nested + b"\x8c\x01x\x93.",
        "a class": b"\x80\x04" + nested + b")\x81.",
        "a device": b"\x80\x04" + device + nested + b"\x85R.",
        "a device of devices": b"\x80\x04"
        + device
        + b"\x8c\x01x"
        + 60 * (b"2\x86R" + device)
        + b".",
        "one list for every call": b"\x80\x04]\x94("
        + 9999 * b"K\x01"
        + b"e"
        + 9999 * (size + b"h\x00\x85R")
        + b".",
    }.items():
        path.write_bytes(program)
        assert refused(lambda path: interop.load_edm(path), path), name


def test_a_network_is_not_built_before_it_is_compared(tmp_path):
    # In a folder of diffusers the configuration is a file of its own.
    folder = tmp_path / "diffusers"
    folder.mkdir()
    for file in (HERE / "interop" / "diffusers_ddpm").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    assert not refused(interop.load_diffusers, folder)
    for change in (
        {"layers_per_block": 2**62},
        {"layers_per_block": 10**5},
        {"block_out_channels": [32] * 10**4, "down_block_types": ["DownBlock2D"] * 10**4},
        {"block_out_channels": [2**62, 2**62]},
        {"norm_num_groups": "x"},
        {"act_fn": 10**5 * "x"},
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        assert refused(interop.load_diffusers, folder), change
