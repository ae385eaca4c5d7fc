"""Images to be judged, as others write them."""

import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import eqdiff as eqd


read = eqd.metrics.read_samples
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3)).astype(np.uint8)
TRUTH = PIXELS.transpose(0, 3, 1, 2)


def write_pngs(folder, pixels, **options):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:06d}.png", **options)


def test_npz_of_guided_diffusion_and_of_ours(tmp_path):
    labels = np.arange(5)
    np.savez(tmp_path / "samples.npz", PIXELS, labels)
    images, found = read(tmp_path / "samples.npz")
    np.testing.assert_array_equal(images, TRUTH)
    np.testing.assert_array_equal(found, labels)
    reference = {"arr_0": PIXELS, "mu": np.zeros(2), "sigma": np.eye(2)}
    np.savez_compressed(tmp_path / "reference.npz", **reference)
    images, found = read(tmp_path / "reference.npz")
    assert found is None
    np.testing.assert_array_equal(images, TRUTH)
    eqd.data.write_npz(tmp_path / "ours.npz", TRUTH / 127.5 - 1, labels)
    np.testing.assert_array_equal(read(tmp_path / "ours.npz")[0], TRUTH)


def test_folder_and_zip_in_the_order_of_names(tmp_path):
    write_pngs(tmp_path / "images/b", PIXELS[2:])
    write_pngs(tmp_path / "images/a", PIXELS[:2])
    (tmp_path / "images/notes.txt").write_text("no image")
    (tmp_path / "images/.hidden.png").write_bytes(b"no image")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted((tmp_path / "images").rglob("*.*"), reverse=True):
            archive.write(path, path.relative_to(tmp_path))
    for place in ("images", "images.zip"):
        images, labels = read(tmp_path / place)
        assert labels is None
        np.testing.assert_array_equal(images, TRUTH)


def test_grey_images_have_one_channel_unless_some_are_in_colour(tmp_path):
    write_pngs(tmp_path / "images", PIXELS[..., 0])
    np.testing.assert_array_equal(read(tmp_path / "images")[0], TRUTH[:, :1])
    Image.fromarray(PIXELS[4]).save(tmp_path / "images/000004.png")
    images, _ = read(tmp_path / "images")
    np.testing.assert_array_equal(images[:4], np.repeat(TRUTH[:4, :1], 3, axis=1))
    np.testing.assert_array_equal(images[4], TRUTH[4])
    # Which features of images in colour take them.
    found = eqd.metrics.extract(lambda x: jnp.mean(x, (1, 2), dtype=jnp.float32), images)
    assert found.shape == (5, 3)


def test_files_without_images_to_judge(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        read(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        read(tmp_path / "empty")
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(2), sigma=np.eye(2))
    with pytest.raises(ValueError, match="has no arr_0, but mu, sigma"):
        read(tmp_path / "statistics.npz")
    np.savez(tmp_path / "floats.npz", TRUTH / 255)
    with pytest.raises(ValueError, match=r"arr_0 is float64 \(5, 3, 4, 6\), expected uint8"):
        read(tmp_path / "floats.npz")
    np.savez(tmp_path / "labels.npz", PIXELS, np.arange(3))
    with pytest.raises(ValueError, match="5 images, but labels of shape"):
        read(tmp_path / "labels.npz")
    (tmp_path / "text.txt").write_text("no images")
    with pytest.raises(ValueError, match="expected an npz file, a folder or a zip"):
        read(tmp_path / "text.txt")
    write_pngs(tmp_path / "images", PIXELS)
    Image.fromarray(PIXELS[0][:3]).save(tmp_path / "images/z.png")
    with pytest.raises(ValueError, match=r"z.png is 3x6 .* 000000.png is 4x6"):
        read(tmp_path / "images")
    (tmp_path / "images/z.png").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"cannot decode the image .*z.png"):
        read(tmp_path / "images")
