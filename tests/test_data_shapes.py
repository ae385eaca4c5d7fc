"""Examples of any shape, from arrays and other people's objects, through the one loader."""

import grain
import jax
import numpy as np
import pytest
from PIL import Image

import eqdiff as eqd
from eqdiff import data


RNG = np.random.default_rng(0)
FLOATS = {
    "images": RNG.uniform(-1, 1, (6, 1, 4, 5)).astype(np.float32),
    "signals": 10 * RNG.normal(size=(6, 2, 7)),
    "vectors": RNG.normal(size=(6, 3)).astype(np.float16),
}
INTEGERS = {
    "signals": (RNG.integers(0, 256, (6, 1, 7), np.uint8), None, 256),
    "volumes": (RNG.integers(0, 256, (6, 1, 2, 3, 4), np.uint8), None, 256),
    "16 bits": (RNG.integers(0, 65536, (6, 3, 4, 4), np.uint16), 65536, 65536),
}


@pytest.mark.parametrize("name", FLOATS)
def test_floats_pass_unchanged(name):
    array = FLOATS[name]
    before = array.copy()
    source = data.ArraySource(array, np.arange(6))
    assert (source.levels, source.shape) == (None, array.shape[1:])
    batches = data.loader(source, 4, seed=0, horizontal_flip=array.ndim > 3)
    for _ in range(3):
        x, y = next(batches)
        assert x.dtype == np.float32 and y.dtype == np.int32
        same = (x == array[y].astype(np.float32)).reshape(4, -1).all(axis=1)
        flipped = (x == array[y].astype(np.float32)[..., ::-1]).reshape(4, -1).all(axis=1)
        assert np.all(same if array.ndim < 4 else same | flipped)
        x[...] = 7  # A batch is the caller's own.
    assert np.array_equal(array, before)


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_go_onto_the_grid(name):
    array, levels, expected = INTEGERS[name]
    x, y = next(data.loader(data.ArraySource(array, np.arange(6), levels=levels), 6, seed=0))
    truth = -1 + 2 * array[y].astype(np.float64) / (expected - 1)
    assert x.dtype == np.float32 and np.abs(x - truth).max() < 1e-7


def test_16_bits_need_their_levels():
    with pytest.raises(ValueError, match="levels=301"):
        data.ArraySource(np.array([[0, 300]], np.uint16))


def test_flips_need_a_width():
    volume = np.arange(8, dtype=np.uint8).reshape(1, 1, 2, 2, 2)
    x, _ = next(data.loader(volume, 64, seed=0, horizontal_flip=True))
    grid = data.normalise(volume[0])
    flipped = np.array([np.array_equal(one, grid[..., ::-1]) for one in x])
    assert 0 < flipped.sum() < 64
    assert all(np.array_equal(one, grid) for one in x[~flipped])
    with pytest.raises(ValueError, match=r"horizontal_flip=True.*\(1, 7\).*width"):
        data.loader(np.zeros((6, 1, 7), np.uint8), 4, seed=0, horizontal_flip=True)


def test_other_conditions_than_classes():
    x = RNG.normal(size=(6, 3)).astype(np.float32)
    conditions = RNG.normal(size=(6, 2))
    _, c = next(data.loader((x, conditions), 6, seed=0, shuffle=False))
    assert c.dtype == np.float32 and np.array_equal(c, conditions.astype(np.float32))


@pytest.mark.parametrize("count", (1, 2))
def test_drop_last_leaves_full_batches(count):
    def sizes(batch_size, **options):
        parts = [
            data.loader(
                np.zeros((11, 2), np.uint8),
                batch_size,
                seed=0,
                epochs=2,
                process_index=i,
                process_count=count,
                **options,
            )
            for i in range(count)
        ]
        found = [[len(y) for _, y in part] for part in parts]
        assert all(part == found[0] for part in found)
        return found[0]

    assert sizes(8 // count, drop_last=True) == [8 // count] * 2
    assert sizes(8 // count)[-1] == 6 // count
    assert sizes(22 // count, drop_last=True) == [22 // count]
    assert sizes(24, drop_last=True) == []


def test_held_out():
    digits = data.digits(test_size=40)
    x, labels = digits.held_out(8)
    order = np.random.RandomState(0).permutation(40)[:8]
    assert x.dtype == np.float32 and np.array_equal(x, digits.test.images[order] / 8 - 1)
    assert labels.dtype == np.int32 and np.array_equal(labels, digits.test.labels[order])
    whole, _ = digits.held_out()
    assert len(whole) == 40 and np.array_equal(whole[:8], x)
    assert not np.array_equal(digits.held_out(8, seed=1)[0], x)
    floats = data.ArraySource(FLOATS["signals"])
    x, _ = data.Dataset("waves", floats, floats).held_out(100)
    truth = FLOATS["signals"].astype(np.float32)
    assert sorted(map(bytes, x)) == sorted(map(bytes, truth))
    with pytest.raises(ValueError, match="no test examples.*test_size"):
        data.digits(test_size=0).held_out()
    with pytest.raises(ValueError, match="num=0"):
        digits.held_out(0)


class _HuggingFace:
    """The protocol of a `datasets.Dataset`: rows are dictionaries of columns."""

    def __init__(self, columns):
        self.columns = columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index):
        return {name: values[index] for name, values in self.columns.items()}


def _pictures(modes):
    pixels = [RNG.integers(0, 256, (6, 4, 3), np.uint8) for _ in modes]
    return pixels, [Image.fromarray(p).convert(m) for p, m in zip(pixels, modes, strict=True)]


def test_hugging_face_pictures():
    pixels, pictures = _pictures(["RGB"] * 5)
    rows = _HuggingFace({"id": list("abcde"), "img": pictures, "label": [3, 1, 4, 1, 5]})
    x, y = next(data.loader(rows, 5, seed=0, shuffle=False))
    assert y.tolist() == [3, 1, 4, 1, 5]
    assert np.array_equal(x, data.normalise(np.stack(pixels).transpose(0, 3, 1, 2)))
    mixed = _HuggingFace({"image": _pictures(["L", "RGB", "RGBA"])[1]})
    source = data.RandomAccessSource(mixed, channels=3, image_size=4)
    x, y = next(data.loader(source, 3, seed=0, num_threads=0))
    assert x.shape == (3, 3, 4, 4) and y.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"example 1 .*\(3, 6, 4\).*\(1, 6, 4\).*channels="):
        data.RandomAccessSource(mixed).take(np.arange(3))
    several = {"image": pictures, "mask": pictures, "label": [0] * 5, "fine_label": [1] * 5}
    with pytest.raises(ValueError, match=r"several columns.*image, mask.*column="):
        data.as_source(_HuggingFace(several))
    with pytest.raises(ValueError, match="several columns of labels.*label_column="):
        data.RandomAccessSource(_HuggingFace(several), column="image")
    chosen = data.RandomAccessSource(
        _HuggingFace(several), column="mask", label_column="fine_label"
    )
    assert chosen[4][1] == 1
    with pytest.raises(ValueError, match="no column 'picture': they have image, mask"):
        data.RandomAccessSource(_HuggingFace(several), column="picture")


@pytest.mark.parametrize("threads", (0, 2))
def test_grain_sources_and_arrays_give_the_same_batches(threads):
    array, labels = FLOATS["signals"].astype(np.float32), np.arange(6)
    pairs = grain.MapDataset.source([(x, y) for x, y in zip(array, labels, strict=True)])
    sources = (pairs, (array, labels), data.ArraySource(array, labels))
    batches = [data.loader(s, 4, seed=3, num_threads=threads) for s in sources]
    state = batches[0].get_state()
    for _ in range(4):
        (x, y), *others = (next(b) for b in batches)
        for x2, y2 in others:
            assert np.array_equal(x, x2) and np.array_equal(y, y2)
    batches[0].set_state(state)
    first = next(data.loader(array, 4, seed=3))[0]
    assert np.array_equal(next(batches[0])[0], first)
    for b in batches:
        b.close()
    assert np.array_equal(
        next(data.loader(jax.numpy.asarray(array), 6, seed=0, shuffle=False))[0], array
    )


@pytest.mark.parametrize("what", ({"a": 1}, 3, [1, 2], "folder", eqd.data.digits))
def test_other_objects_are_no_sources(what):
    with pytest.raises(TypeError, match=r"expected an eqdiff.data.AbstractSource.*dataset.train"):
        data.loader(what, 4, seed=0)


class _Damaged(data.AbstractSource):
    """Example i holds i; some cannot be read."""

    shape, levels = (1,), None

    def __init__(self, bad):
        self.bad = bad

    def __len__(self):
        return 10

    def take(self, indices):
        for index in indices:
            if index in self.bad:
                raise data.DamagedFileError(f"cannot decode {index}.png")
        return indices[:, None].astype(np.float32), indices


@pytest.mark.filterwarnings("ignore:skipped a damaged example")
@pytest.mark.parametrize("threads", (0, 2))
def test_damaged_examples_are_replaced_by_the_next_whole_one(threads):
    def make(bad, **options):
        return data.loader(_Damaged(bad), 4, seed=1, num_threads=threads, epochs=2, **options)

    stands_for = np.array([0, 1, 4, 4, 4, 5, 6, 7, 8, 0])
    batches = make((2, 3, 9), skip_damaged=3)
    truth = [stands_for[y] for _, y in make(())]
    seen = [next(batches)]
    state = batches.get_state()
    seen += list(batches)
    assert all(np.array_equal(y, t) for (_, y), t in zip(seen, truth, strict=True))
    assert sorted(batches.damaged) == [f"cannot decode {i}.png" for i in (2, 3, 9)]
    # Resumed in a loader that has met none of them.
    resumed = make((2, 3, 9), skip_damaged=3)
    resumed.set_state(state)
    assert all(np.array_equal(y, t) for (_, y), t in zip(resumed, truth[1:], strict=True))
    with pytest.raises(data.DamagedFileError, match=r"one more than skip_damaged=2(.|\n)*png"):
        list(make((2, 3, 9), skip_damaged=2))
    with pytest.raises(data.DamagedFileError, match=r"^cannot decode .\.png\n"):
        list(make((2, 3, 9)))
    with pytest.raises(data.DamagedFileError, match="all 10 examples"):
        list(make(range(10), skip_damaged=10))


def test_skipping_warns_once_per_example():
    batches = data.loader(_Damaged((5,)), 10, seed=0, num_threads=0, skip_damaged=1)
    with pytest.warns(UserWarning, match=r"1 of at most 1\): cannot decode 5.png") as caught:
        next(batches)
        next(batches)
    assert len(caught) == 1
