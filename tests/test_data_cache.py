"""The cache: equal to what it holds, written once, whole or not at all, damage noticed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eqdiff import data


RNG = np.random.default_rng(0)


def folder(root, n=40):
    for i in range(n):
        path = root / f"{'ab'[i % 2]}" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (6, 5, 3), np.uint8)).save(path)
    return data.image_folder(root)


def cached(dataset, directory, **options):
    return data.cached(dataset, directory, progress=False, **options)


def equal(a, b):
    for one, other in ((a.train, b.train), (a.test, b.test)):
        x, y = one.take(np.arange(len(one)))
        x2, y2 = other.take(np.arange(len(other)))
        if not (np.array_equal(x, x2) and np.array_equal(y, y2)):
            return False
    return (a.class_names, a.shape, a.levels) == (b.class_names, b.shape, b.levels)


def test_a_cache_is_the_data_set_and_is_written_once(tmp_path, monkeypatch):
    d = folder(tmp_path / "pets")
    c = cached(d, tmp_path / "cache")
    assert equal(c, d) and isinstance(c.train, data.MappedSource)
    assert c.train.take(np.arange(1))[0].dtype == np.uint8

    def streams(dataset):
        return data.loader(dataset.train, 8, seed=0, horizontal_flip=True, num_threads=2)

    mine, truth = streams(c), streams(d)
    for _ in range(6):
        assert np.array_equal(next(mine)[0], next(truth)[0])
    mine.close()
    truth.close()
    monkeypatch.setattr("eqdiff.data._folder.decode", None)
    assert len(cached(d, tmp_path / "cache").train) == 36
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_changed_data_make_another_cache(tmp_path):
    d = folder(tmp_path / "pets", 10)
    cached(d, tmp_path / "cache")
    path = Path(str(d.train.paths[0]))
    Image.fromarray(np.full((6, 5, 3), 7, np.uint8)).save(path)
    os.utime(path, ns=(1, 1))
    c = cached(d, tmp_path / "cache")
    assert np.all(c.train[0][0] == 7) and equal(c, d)
    small = data.image_folder(tmp_path / "pets", image_size=4)
    assert equal(cached(small, tmp_path / "cache"), small)
    assert len(list((tmp_path / "cache").iterdir())) == 3


class _Rows:
    """Random access without a fingerprint, or with Hugging Face's."""

    def __init__(self, examples, fingerprint=None):
        self.examples = examples
        if fingerprint:
            self._fingerprint = fingerprint

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index], index


@pytest.mark.parametrize(
    "examples, levels, dtype",
    [
        (RNG.normal(size=(5, 2, 7)).astype(np.float32), None, np.float32),
        (RNG.integers(0, 65536, (5, 1, 3, 3)), 65536, np.uint16),
    ],
)
def test_other_sources(tmp_path, examples, levels, dtype):
    def dataset(fingerprint=None):
        source = data.RandomAccessSource(_Rows(examples, fingerprint), levels=levels)
        return data.Dataset("rows", source, source)

    with pytest.raises(ValueError, match="nothing says when .*key="):
        cached(dataset(), tmp_path)
    for c in (cached(dataset(), tmp_path, key="v1"), cached(dataset("f00"), tmp_path)):
        assert c.train.take(np.arange(5))[0].dtype == dtype and equal(c, dataset())
    assert len(list(tmp_path.iterdir())) == 2
    inside = data.digits()
    assert cached(inside, tmp_path) is inside


def test_damage_is_noticed(tmp_path):
    d = folder(tmp_path / "pets")
    made = cached(d, tmp_path / "cache").train.folder
    path = made / "train.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    c = cached(d, tmp_path / "cache")
    c.train.take(np.arange(35))
    with pytest.raises(data.DamagedFileError, match=r"example 35 of .*train.npy is not what was"):
        c.train[35]
    path.write_bytes(whole)
    for name, content in (
        ("train.npy", whole[:-1]),
        ("train-labels.npy", None),
        ("cache.json", b"{"),
    ):
        before = (made / name).read_bytes()
        if content is None:
            content = before[:-1] + bytes([before[-1] ^ 1])
        (made / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"the cache .* is damaged .*remove the folder"):
            cached(d, tmp_path / "cache")
        (made / name).write_bytes(before)
    assert equal(cached(d, tmp_path / "cache"), d)


def test_nothing_is_left_by_errors(tmp_path):
    d = folder(tmp_path / "pets")
    broken = Path(str(d.train.paths[20]))
    broken.write_bytes(b"no image")
    with pytest.raises(data.DamagedFileError, match=broken.name):
        cached(d, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.warns(UserWarning, match=f"skipped.*{broken.name}"):
        c = cached(d, tmp_path / "cache", skip_damaged=1)
    assert np.array_equal(c.train[20][0], d.train[21][0]) and c.train[20][1] == d.train[21][1]


WRITER = """
import sys
from eqdiff import data
root, cache = sys.argv[1:]
c = data.cached(data.image_folder(root), cache, progress=False)
print(len(c.train), int(c.train[3][0].sum()))
"""


@pytest.mark.slow
def test_processes_write_at_once_and_are_killed(tmp_path):
    d = folder(tmp_path / "pets", 60)
    cache = tmp_path / "cache"
    # What a killed writer leaves: a folder that nobody holds.
    name = cached(d, tmp_path / "other").train.folder.name
    (cache / f".{name}.dead.tmp").mkdir(parents=True)
    (cache / f".{name}.dead.tmp" / "lock").touch()
    command = [sys.executable, "-c", WRITER, str(tmp_path / "pets"), str(cache)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [p.communicate()[0].split() for p in running]
    assert outputs == [["54", str(int(d.train[3][0].sum()))]] * 2
    assert [p.name for p in cache.iterdir()] == [name]
    assert json.loads((cache / name / "cache.json").read_text())["train"]["length"] == 54
    assert equal(cached(d, cache), d)


def test_the_second_of_two_writers_keeps_the_first_ones(tmp_path, monkeypatch):
    from eqdiff.data import _cache

    d = folder(tmp_path / "pets", 10)
    write_part, first = _cache._write_part, []

    def interrupted(*args):
        if not first:
            first.append(True)
            first.append(cached(d, tmp_path / "cache").train)
        return write_part(*args)

    monkeypatch.setattr(_cache, "_write_part", interrupted)
    second = cached(d, tmp_path / "cache").train
    assert np.array_equal(second[0][0], first[1][0][0])
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [second.folder.name]
