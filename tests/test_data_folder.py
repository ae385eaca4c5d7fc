"""Folders of images: formats, channels, sizes, classes, and damaged files."""

import numpy as np
import pytest
from PIL import Image

from eqdiff import data
from eqdiff.data._decode import resize


def save(path, array, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.asarray(array)
    Image.fromarray(array if array.dtype == np.uint16 else array.astype(np.uint8)).save(
        path, **kwargs
    )


def colour(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def images_of(dataset):
    """All images by file name, of both parts."""
    return {
        path.name: source[i]
        for source in (dataset.train, dataset.test)
        for i, path in enumerate(source.paths)
    }


@pytest.mark.parametrize("suffix", ("png", "bmp", "tif", "TIFF"))
def test_lossless_formats_non_square(tmp_path, suffix):
    arrays = [colour(5, 9, seed) for seed in range(4)]
    for i, array in enumerate(arrays):
        save(tmp_path / f"{i}.{suffix}", array)
    (tmp_path / "notes.txt").write_text("not an image")
    save(tmp_path / ".hidden.png", colour(2, 2))
    d = data.image_folder(tmp_path, test_fraction=0.25)
    assert (d.shape, d.levels, d.class_names) == ((3, 5, 9), 256, None)
    assert (len(d.train), len(d.test)) == (3, 1)
    for name, (image, label) in images_of(d).items():
        assert np.array_equal(image, arrays[int(name[0])].transpose(2, 0, 1))
        assert label == 0


@pytest.mark.parametrize("suffix", ("jpg", "jpeg", "webp", "gif"))
def test_lossy_formats(tmp_path, suffix):
    array = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    save(tmp_path / f"x.{suffix}", array)
    d = data.image_folder(tmp_path)
    image, _ = d.train[0]
    assert image.shape == (3, 16, 16)
    assert np.abs(image.astype(int) - array.transpose(2, 0, 1)).max() <= 8


def test_classes_and_nesting(tmp_path):
    for k, name in enumerate(("dog", "cat", "emu/deep")):
        for i in range(3):
            save(tmp_path / name / f"{k}{i}.png", np.full((4, 4), 10 * k + i))
    d = data.image_folder(tmp_path, test_fraction=0.0)
    assert d.class_names == ("cat", "dog", "emu") and d.num_classes == 3
    assert (len(d.train), len(d.test)) == (9, 0)
    expected = {"0": 1, "1": 0, "2": 2}
    for name, (image, label) in images_of(d).items():
        assert label == expected[name[0]]
        assert np.all(image == 10 * int(name[0]) + int(name[1]))
    # With an image next to them, sub-folders are not classes.
    save(tmp_path / "x.png", np.zeros((4, 4)))
    d = data.image_folder(tmp_path)
    assert d.class_names is None and d.train.labels.max() == 0


def test_split_is_seeded_and_complete(tmp_path):
    for i in range(10):
        save(tmp_path / f"{i}.png", np.full((2, 2), i))

    def split(seed):
        return data.image_folder(tmp_path, test_fraction=0.3, seed=seed)

    a, b = split(0), split(0)
    assert a.test.paths == b.test.paths and len(a.test) == 3
    assert len({split(seed).test.paths for seed in range(5)}) > 1
    assert sorted(map(str, a.train.paths + a.test.paths)) == sorted(
        map(str, tmp_path.glob("*.png"))
    )
    assert len(data.image_folder(tmp_path, test_fraction=0.01).test) == 1


@pytest.mark.parametrize("mode, channels", (("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)))
def test_native_channels_are_kept(tmp_path, mode, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, channels), np.uint8)
    save(tmp_path / "a.png", pixels[..., 0] if channels == 1 else pixels)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == mode
    d = data.image_folder(tmp_path)
    assert d.shape == (channels, 3, 5)
    assert np.array_equal(d.train[0][0], pixels.transpose(2, 0, 1))


def test_channels_can_be_chosen(tmp_path):
    save(tmp_path / "a.png", np.array([[0, 77, 255]]))
    save(tmp_path / "b.png", np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]))
    # An invisible pixel of any colour is white; alpha 51 = 255 / 5 mixes in four fifths of white.
    save(tmp_path / "c.png", np.array([[[9, 99, 0, 0], [10, 20, 30, 255], [0, 50, 100, 51]]]))
    with pytest.raises(ValueError, match=r"a.png has 1, .*b.png has 3; pass channels=3"):
        data.image_folder(tmp_path)
    found = images_of(data.image_folder(tmp_path, channels=3))
    assert found["a.png"][0].tolist() == [[[0, 77, 255]]] * 3
    assert found["b.png"][0].tolist() == [[[255, 0, 0]], [[0, 255, 0]], [[0, 0, 255]]]
    assert found["c.png"][0].tolist() == [[[255, 10, 204]], [[255, 20, 214]], [[255, 30, 224]]]
    found = images_of(data.image_folder(tmp_path, channels=1))
    # ITU-R 601 luma.
    assert found["b.png"][0].ravel().tolist() == [76, 150, 29]


def test_16_bits_palette_and_bilevel(tmp_path):
    values = np.array([[0, 128, 129, 257 * 100 + 128, 257 * 100 + 129, 65535]], np.uint16)
    save(tmp_path / "deep" / "a.png", values)
    save(tmp_path / "deep" / "b.tif", values)
    for image, _ in images_of(data.image_folder(tmp_path / "deep")).values():
        assert image.tolist() == [[[0, 0, 1, 100, 101, 255]]]
    (tmp_path / "other").mkdir()
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "other" / "a.png")
    assert data.image_folder(tmp_path / "other").train[0][0].tolist() == [[[0, 255]]]
    (tmp_path / "palette").mkdir()
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "palette" / "a.png")
    image, _ = data.image_folder(tmp_path / "palette").train[0]
    assert image.tolist() == [[[10, 40]], [[20, 50]], [[30, 60]]]
    (tmp_path / "float").mkdir()
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float" / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif \(it holds floats"):
        data.image_folder(tmp_path / "float")


def test_exif_orientation(tmp_path):
    stored = np.zeros((16, 32), np.uint8)
    stored[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # To be shown turned clockwise: the left half comes to the top.
    save(tmp_path / "a.jpg", stored, exif=exif)
    image, _ = data.image_folder(tmp_path).train[0]
    assert image.shape == (1, 32, 16)
    assert image[0, :16].min() > 240 and image[0, 16:].max() < 15


def test_mixed_sizes_name_two_files_and_the_argument(tmp_path):
    save(tmp_path / "a.png", colour(8, 12))
    save(tmp_path / "b.png", colour(6, 12))
    with pytest.raises(ValueError, match=r"a.png is 8x12, .*b.png is 6x12; pass image_size=6"):
        data.image_folder(tmp_path)
    assert data.image_folder(tmp_path, image_size=6).shape == (3, 6, 6)
    d = data.image_folder(tmp_path, image_size=(4, 6))
    assert d.shape == (3, 4, 6) and d.train[0][0].shape == (3, 4, 6)


def test_resize_halves_by_averaging_blocks():
    # Block means that are integers, so that no rounding enters.
    blocks = np.array([[10, 20, 30], [40, 50, 60]])
    noise = np.array([[1, -1], [-3, 3]])
    array = (blocks[:, None, :, None] + noise[None, :, None, :]).reshape(4, 6).astype(np.uint8)
    assert np.array_equal(np.asarray(resize(Image.fromarray(array), 2, 3)), blocks)
    twice = array.repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(np.asarray(resize(Image.fromarray(twice), 2, 3)), blocks)


def test_resize_crops_the_centre():
    array = np.arange(3 * 8, dtype=np.uint8).reshape(3, 8)
    wide = resize(Image.fromarray(array), 3, 4)
    assert np.array_equal(np.asarray(wide), array[:, 2:6])
    tall = resize(Image.fromarray(array.T), 5, 3)
    # One row too many goes to the bottom: (8 - 5) // 2 rows are cut at the top.
    assert np.array_equal(np.asarray(tall), array.T[1:6])


def bicubic_matrix(n, m):
    """Resampling weights of Keys' kernel with a = -1/2, widened by n/m when it shrinks."""
    scale = n / m
    width = max(scale, 1)
    centre = (np.arange(m)[:, None] + 0.5) * scale
    d = np.abs(np.arange(n) + 0.5 - centre) / width
    near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    weights = np.where(d < 1, near, np.where(d < 2, far, 0))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("size, target", (((9, 9), (6, 6)), ((4, 4), (7, 7)), ((6, 9), (4, 6))))
def test_resize_is_bicubic(size, target):
    array = np.random.default_rng(1).integers(60, 200, size, np.uint8)
    exact = bicubic_matrix(size[0], target[0]) @ array @ bicubic_matrix(size[1], target[1]).T
    ours = np.asarray(resize(Image.fromarray(array), *target))
    # Pillow rounds after each of its two passes.
    assert np.abs(ours - exact).max() < 1.25


def test_corrupt_images_are_named(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", colour(16, 16, i))
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    d = data.image_folder(tmp_path, test_fraction=0.0)  # Its header is in order.
    with pytest.raises(ValueError, match=r"cannot decode the image .*1\.png"):
        d.train[1]
    with pytest.raises(ValueError, match=r"cannot decode the image .*1\.png"):
        next(data.loader(d.train, 3, seed=0))
    (tmp_path / "1.png").write_bytes(b"no image at all")
    with pytest.raises(ValueError, match=r"cannot decode the image .*1\.png"):
        data.image_folder(tmp_path)
    # With both arguments no file is opened until it is needed.
    d = data.image_folder(tmp_path, image_size=8, channels=3, test_fraction=0.0)
    assert d.train[0][0].shape == (3, 8, 8)
    with pytest.raises(ValueError, match=r"cannot decode the image .*1\.png"):
        d.train[1]


def test_an_image_that_changed_is_named(tmp_path):
    save(tmp_path / "a.png", colour(4, 4))
    d = data.image_folder(tmp_path)
    save(tmp_path / "a.png", colour(4, 5))
    with pytest.raises(ValueError, match=r"a\.png is 4x5, expected 4x4.*image_size=\(4, 4\)"):
        d.train[0]


@pytest.mark.parametrize(
    "folder, options, error, message",
    [
        ("none", {}, FileNotFoundError, "not a directory"),
        ("", {}, FileNotFoundError, r"no images in .*png"),
        ("", {"image_size": 0}, ValueError, "image_size=0"),
        ("", {"channels": 5}, ValueError, "channels=5"),
        ("", {"test_fraction": 1.0}, ValueError, "test_fraction=1"),
    ],
    ids=["missing", "empty", "size", "channels", "fraction"],
)
def test_folders_are_refused(folder, options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        data.image_folder(tmp_path / folder, **options)


def test_links_to_folders_are_followed_once(tmp_path):
    save(tmp_path / "real" / "a.png", colour(4, 4))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "circle").symlink_to(tmp_path / "data")
    assert len(data.image_folder(tmp_path / "data").train) == 1


def test_loader_over_a_folder(tmp_path):
    arrays = [colour(4, 6, seed) for seed in range(7)]
    for i, array in enumerate(arrays):
        save(tmp_path / f"{i % 2}" / f"{i}.png", array)
    d = data.image_folder(tmp_path, test_fraction=0.0)
    batches = data.loader(d.train, 3, seed=0, num_threads=2)
    next(batches)
    state = batches.get_state()
    following = [next(batches) for _ in range(4)]
    batches.set_state(state)
    for x, y in following:
        x2, y2 = next(batches)
        assert np.array_equal(x, x2) and np.array_equal(y, y2)
    batches.close()
    truth = {data.normalise(a.transpose(2, 0, 1)).tobytes() for a in arrays}
    once = data.loader(d.train, 3, seed=0, epochs=1, num_threads=2)
    seen = [image.tobytes() for x, _ in once for image in x]
    assert len(seen) == 7 and set(seen) == truth
    once.close()
