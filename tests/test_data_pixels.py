"""Grey levels, sources and the digits: the grid of equation (1) in `_pixels.py`, and back."""

import subprocess
import sys
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from eqdiff import data


@pytest.mark.parametrize("levels", (2, 17, 256, 65536))
def test_normalise_is_the_nearest_float32_of_the_exact_grid(levels):
    k = np.arange(levels)
    x = data.normalise(k, levels=levels)
    some = {0, 1, levels // 3, levels // 2, levels - 2, levels - 1}
    for j in some:
        exact = Fraction(2 * j, levels - 1) - 1
        assert x[j] == np.float32(float(exact))
    assert x.dtype == np.float32
    assert x[0] == -1 and x[-1] == 1
    assert np.all(np.diff(x) > 0)


@pytest.mark.parametrize("levels", (2, 3, 16, 17, 52, 86, 256))
def test_to_uint8_inverts_normalise(levels):
    k = np.arange(levels)
    pixels = data.to_uint8(data.normalise(k, levels=levels), levels=levels)
    # Exact rational arithmetic: the pixel nearest to 255 k / (levels - 1).
    nearest = [round(Fraction(255 * int(j), levels - 1)) for j in k]
    assert pixels.dtype == np.uint8
    assert pixels.tolist() == nearest


def test_to_uint8_rounds_where_the_official_code_truncates():
    k = np.arange(1, 255)
    x = -1 + 2 * k / 255
    for shift in (-0.49, -0.01, 0.01, 0.49):
        moved = x + shift * 2 / 255
        assert np.array_equal(data.to_uint8(moved), k)
        official = ((moved + 1) * 127.5).clip(0, 255).astype(np.uint8)
        assert np.array_equal(official, k if shift > 0 else k - 1)


def test_to_uint8_clips_and_takes_any_float():
    x = jnp.array([-np.inf, -3.0, -1.0, 1.0, 7.0, np.inf], jnp.bfloat16)
    assert data.to_uint8(x).tolist() == [0, 0, 0, 255, 255, 255]
    assert data.to_uint8(np.float16(1)).shape == ()


@pytest.mark.parametrize(
    "convert, error, message",
    [
        (lambda: data.normalise(np.zeros(3, np.float32)), TypeError, r"2 \* x - 1"),
        (lambda: data.normalise(np.array([0, 16]), levels=16), ValueError, "0 to 16.*levels=17"),
        (lambda: data.normalise(np.array([-1, 3])), ValueError, "from -1 to 3"),
        (lambda: data.normalise(np.array([0]), levels=1), ValueError, "levels=1"),
        (lambda: data.to_uint8(np.array([3])), TypeError, r"to_uint8\(normalise"),
        (lambda: data.to_uint8(np.array([0.0, np.nan])), ValueError, "1 NaN of 2"),
    ],
    ids=["floats", "too high", "negative", "one level", "integers", "NaN"],
)
def test_pixels_are_refused(convert, error, message):
    with pytest.raises(error, match=message):
        convert()


def test_array_source():
    images = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    source = data.ArraySource(images, np.array([7, 8]))
    assert len(source) == 2 and source.shape == (3, 4, 5) and source.levels == 256
    image, label = source[1]
    assert np.array_equal(image, images[1]) and label == 8 and type(label) is int
    assert source[-1][1] == 8
    with pytest.raises(IndexError, match="2 examples"):
        source[2]
    assert [label for _, label in source] == [7, 8]


GREY = np.zeros((2, 1, 4, 4), np.uint8)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: data.ArraySource(GREY[:, 0, 0, 0]), r"images\[:, None\]"),
        (lambda: data.ArraySource(GREY / 2.0, levels=17), "float64 images: floats pass"),
        (lambda: data.ArraySource(GREY.astype(complex)), "complex128"),
        (lambda: data.ArraySource(np.full((2, 3), np.nan)), "example 0 holds NaN"),
        (lambda: data.ArraySource(GREY, np.zeros(3, int)), "expected 2 integers"),
        (
            lambda: data.ArraySource(GREY + np.uint8(17), levels=17),
            "from 17 to 17, expected 0 to 16: pass levels=18",
        ),
        (
            lambda: data.ArraySource(GREY.astype(int) - 3),
            "from -3 to -3, expected 0 to 255: shift them to begin at 0",
        ),
        (lambda: data.normalise(np.array([-3, 4])), "normalise got .*-3 to 4.* shift them"),
        (
            lambda: data.Dataset(
                "x", data.ArraySource(GREY), data.ArraySource(GREY.repeat(3, axis=1))
            ),
            "expected the same",
        ),
    ],
    ids=[
        "scalars",
        "floats",
        "complex",
        "NaN",
        "labels",
        "levels",
        "negative",
        "one image",
        "two shapes",
    ],
)
def test_sources_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_digits():
    d = data.digits()
    assert (d.shape, d.levels, d.num_classes) == ((1, 8, 8), 17, 10)
    assert (len(d.train), len(d.test)) == (1497, 300)
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    ours = np.concatenate([d.train.images, d.test.images]).reshape(-1, 64)
    labels = np.concatenate([d.train.labels, d.test.labels])

    # The split is a partition of scikit-learn's set, labels included.
    def rows(x, y):
        return sorted(map(bytes, np.column_stack([x, y]).astype(np.uint8)))

    assert rows(ours, labels) == rows(pixels, target)
    # Stratified: every class within one image of its share.
    share = np.bincount(target) * 300 / 1797
    assert np.all(np.abs(np.bincount(d.test.labels) - share) < 1)
    assert d.normalise(d.train.images).max() == 1


def test_digits_split_depends_on_the_seed_alone():
    a, b, c = data.digits(seed=1), data.digits(seed=1), data.digits(seed=2)
    assert np.array_equal(a.test.images, b.test.images)
    assert not np.array_equal(a.test.images, c.test.images)
    assert len(data.digits(test_size=0).train) == 1797
    with pytest.raises(ValueError, match="test_size=1797"):
        data.digits(test_size=1797)


def test_import_is_cheap_and_names_the_extra(monkeypatch):
    code = (
        "import sys, eqdiff.data as d\n"
        "loaded = {'grain', 'PIL', 'sklearn', 'tqdm', 'torch'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    source = data.ArraySource(np.zeros((2, 1, 4, 4), np.uint8))
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r"needs grain.*pip install 'eqdiff\[data\]'"):
        next(data.loader(source, 2, seed=0))
