"""Grids of images: every pixel of the PNG accounted for."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from eqdiff import data


def read(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.mode, np.asarray(image)


def test_every_pixel(tmp_path):
    images = np.arange(3 * 1 * 2 * 2, dtype=np.uint8).reshape(3, 1, 2, 2)
    data.write_grid(tmp_path / "a.png", images, columns=2, scale=2, gap=1)
    mode, picture = read(tmp_path / "a.png")
    g = 128
    expected = [
        [g, g, g, g, g, g, g, g, g, g, g],
        [g, 0, 0, 1, 1, g, 4, 4, 5, 5, g],
        [g, 0, 0, 1, 1, g, 4, 4, 5, 5, g],
        [g, 2, 2, 3, 3, g, 6, 6, 7, 7, g],
        [g, 2, 2, 3, 3, g, 6, 6, 7, 7, g],
        [g, g, g, g, g, g, g, g, g, g, g],
        [g, 8, 8, 9, 9, g, g, g, g, g, g],
        [g, 8, 8, 9, 9, g, g, g, g, g, g],
        [g, 10, 10, 11, 11, g, g, g, g, g, g],
        [g, 10, 10, 11, 11, g, g, g, g, g, g],
        [g, g, g, g, g, g, g, g, g, g, g],
    ]
    assert mode == "L" and picture.tolist() == expected


@pytest.mark.parametrize("channels, mode", ((1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")))
def test_channels_and_floats(tmp_path, channels, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (2, channels, 3, 5), np.uint8)
    # Floats, integers and JAX arrays of the same images give the same file.
    for i, images in enumerate((pixels, data.normalise(pixels), jnp.asarray(pixels))):
        data.write_grid(tmp_path / f"{i}.png", images, columns=1, scale=1, gap=0)
        found, picture = read(tmp_path / f"{i}.png")
        assert found == mode
        picture = picture.reshape(2, 3, 5, channels).transpose(0, 3, 1, 2)
        assert np.array_equal(picture, pixels)


def test_digits_fill_the_grey_range(tmp_path):
    images = np.zeros((1, 1, 8, 8), np.uint8)
    images[0, 0, 0, :] = [0, 2, 4, 6, 8, 10, 14, 16]
    data.write_grid(tmp_path / "a.png", images, levels=17, gap=0)
    _, picture = read(tmp_path / "a.png")
    # Enlarged eight times by default: 64 pixels a side.
    assert picture.shape == (64, 64)
    assert picture[0, ::8].tolist() == [0, 32, 64, 96, 128, 159, 223, 255]


def test_defaults_are_square_and_apart(tmp_path):
    data.write_grid(tmp_path / "new" / "a.png", np.full((16, 3, 32, 32), 255, np.uint8))
    _, picture = read(tmp_path / "new" / "a.png")
    assert picture.shape == (4 * 68 + 4, 4 * 68 + 4, 3)
    data.write_grid(tmp_path / "b.png", np.zeros((2, 3, 128, 128), np.uint8), columns=9)
    assert read(tmp_path / "b.png")[1].shape == (128 + 16, 2 * 136 + 8, 3)


def test_replaces_atomically(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    data.write_grid(path, np.zeros((1, 1, 4, 4), np.uint8))
    before = path.read_bytes()

    def fail(self, file, format):
        file.write(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", fail)
        with pytest.raises(OSError, match="disk full"):
            data.write_grid(path, np.full((1, 1, 4, 4), 9, np.uint8))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    data.write_grid(path, np.full((1, 1, 4, 4), 9, np.uint8))
    assert path.read_bytes() != before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "images, options, message",
    [
        (np.zeros((1, 4, 4), np.uint8), {}, r"images\[None\]"),
        (np.zeros((0, 1, 4, 4), np.uint8), {}, r"\(0, 1, 4, 4\)"),
        (np.zeros((2, 1, 4, 4), np.uint8), {"scale": 0}, "scale=0"),
        (np.zeros((2, 1, 4, 4), np.uint8), {"gap": -1}, "gap=-1"),
        (np.full((1, 1, 2, 2), np.nan), {}, "NaN"),
    ],
    ids=["one image", "no images", "scale", "gap", "NaN"],
)
def test_grids_are_refused(images, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        data.write_grid(tmp_path / "a.png", images, **options)
    assert list(tmp_path.iterdir()) == []
