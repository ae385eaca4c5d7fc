"""Features of images and their moments, against NumPy, in pieces and in several processes."""

import pickle

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from processes import outputs

import eqdiff as eqd


Moments = eqd.metrics.Moments


class Sums(eqd.metrics.AbstractFeatures):
    name: str
    weights: jax.Array

    def __call__(self, image):
        return self.weights @ jnp.sum(eqd.metrics.to_uint8(image).astype(jnp.float32), axis=(1, 2))


def assert_same(a, b, rtol):
    np.testing.assert_allclose(a.mean, b.mean, rtol=rtol, atol=rtol * np.abs(b.mean).max())
    scale = rtol * np.abs(b.covariance).max()
    np.testing.assert_allclose(a.covariance, b.covariance, rtol=rtol, atol=scale)
    assert (a.num, a.features, a.size) == (b.num, b.features, b.size)


def test_to_uint8_is_both_published_roundings():
    """The nearest level returns real images; the level below is what iDDPM and ADM write."""
    levels = np.arange(256)
    x = (levels / 127.5 - 1).astype(np.float32)
    back = jax.jit(eqd.metrics.to_uint8)(x)
    assert back.dtype == jnp.uint8
    np.testing.assert_array_equal(back, levels)
    coarse = eqd.metrics.to_uint8(jnp.asarray(x, jnp.bfloat16))
    np.testing.assert_array_equal(coarse, levels)
    samples = np.random.default_rng(0).uniform(-1.1, 1.1, (3, 50, 50)).astype(np.float32)
    # EDM's generate.py and iDDPM's image_sample.py, in their own words.
    nearest = (samples * np.float32(127.5) + np.float32(128)).clip(0, 255).astype(np.uint8)
    below = ((samples + 1) * np.float32(127.5)).clip(0, 255).astype(np.uint8)
    np.testing.assert_array_equal(eqd.metrics.to_uint8(samples), nearest)
    np.testing.assert_array_equal(eqd.metrics.to_uint8(samples, rounding=jnp.floor), below)
    np.testing.assert_array_equal(eqd.metrics.to_uint8(below), below)
    with pytest.raises(TypeError, match="got int32, expected uint8"):
        eqd.metrics.to_uint8(levels.astype(np.int32))


def test_extract_of_arrays_and_of_batches():
    """One row per image, however the images come; all batches share one program."""
    images = np.random.default_rng(0).integers(0, 256, (47, 3, 4, 4)).astype(np.uint8)
    weights = np.array([[1.0, 0, 0], [0, 1, -1]], np.float32)
    truth = images.astype(np.float32).sum((2, 3)) @ weights.T
    features = Sums("sums", jnp.asarray(weights))
    mesh = jax.make_mesh((2,), ("data",))
    np.testing.assert_allclose(eqd.metrics.extract(features, images, batch_size=8), truth)
    batches = (images[i : i + 7] for i in range(0, 47, 7))
    found = eqd.metrics.extract(features, batches, batch_size=4, mesh=mesh)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, truth)
    # As floats in [-1, 1], through any function of one image.
    floats = (images / 127.5 - 1).astype(np.float32)
    np.testing.assert_allclose(eqd.metrics.extract(lambda x: features(x), floats), truth)


def test_extract_compiles_once_for_all_batches():
    traced = []

    class Counted(eqd.metrics.AbstractFeatures):
        name: str = "counted"

        def __call__(self, image):
            traced.append(image.shape)
            return image.reshape(-1).astype(jnp.float32)

    images = np.arange(2 * 43, dtype=np.uint8).reshape(43, 1, 1, 2)
    found = eqd.metrics.extract(Counted(), iter(images[:, None]), batch_size=2)
    np.testing.assert_array_equal(found, images.reshape(43, 2))
    # Two blocks of 20 and one of 3; shapes are found once per call, programs once.
    assert len(traced) <= 5


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((0, 3, 4, 4), np.uint8), "at least one"),
        (iter([]), "at least one image"),
        (np.full((2, 1, 2, 2), 255.0), r"floats up to 255, expected \[-1, 1\]"),
        (np.array([0, np.nan, 0, np.nan]).reshape(4, 1, 1, 1), "2 of 4 images .* number 1"),
        (np.zeros((2, 1, 2, 2), np.int32), "got int32, expected uint8"),
    ],
)
def test_images_that_have_no_features(images, message, monkeypatch):
    # Users run without the type checker that would speak first here.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises((ValueError, TypeError), match=message):
        eqd.metrics.extract(lambda x: x.reshape(-1).astype(jnp.float32), images)


def test_features_that_are_no_vector():
    with pytest.raises(ValueError, match=r"a vector for each image, got shape \(1, 2, 2\)"):
        eqd.metrics.extract(lambda x: x.astype(jnp.float32), np.zeros((2, 1, 2, 2), np.uint8))


def test_moments_are_numpys_however_the_features_come():
    """In one piece, in any pieces, in any order; far from zero, where sums of squares fail."""
    rng = np.random.default_rng(0)
    x = (1e6 + rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5))).astype(np.float64)
    whole = Moments.of(x, features="a", size=(32, 32))
    np.testing.assert_array_equal(whole.mean, x.mean(0))
    np.testing.assert_allclose(whole.covariance, np.cov(x, rowvar=False), rtol=1e-12)
    assert (whole.num, whole.features, whole.size) == (200, "a", (32, 32))
    cuts = np.split(x, [1, 2, 60, 150])
    assert_same(Moments.of(iter(cuts), features="a", size=(32, 32)), whole, 1e-9)
    parts = [Moments.of(cut, features="a", size=(32, 32)) for cut in cuts]
    assert_same((parts[4] + parts[0]) + (parts[3] + (parts[2] + parts[1])), whole, 1e-9)


def test_digest_is_of_the_numbers_alone():
    x = np.random.default_rng(0).normal(size=(20, 3))
    a = Moments.of(x, features="a")
    b = Moments(a.mean.copy(), np.asfortranarray(a.covariance))
    assert a.digest == b.digest and len(a.digest) == 12
    assert Moments(a.mean + 1e-15, a.covariance).digest != a.digest


@pytest.mark.slow
def test_moments_over_processes():
    """Two processes with different features end with the moments of all, bit for bit the same."""
    found = outputs(
        """
        import eqdiff as eqd
        x = np.random.default_rng(0).normal(size=(300, 1200))
        mine = eqd.metrics.Moments.of(x[:100] if index else x[100:], features="a", size=(8, 8))
        all = mine.over_processes()
        truth = eqd.metrics.Moments.of(x)
        out([all.digest, all.num, all.features, all.size,
             float(np.abs(all.covariance - truth.covariance).max())])
        """
    )
    assert found[0] == found[1]
    assert found[0][1:4] == [300, "a", [8, 8]] and found[0][4] < 1e-12


def test_moments_that_do_not_go_together(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    x = np.random.default_rng(0).normal(size=(20, 3))
    a = Moments.of(x, features="a")
    with pytest.raises(ValueError, match="different features: 'a' and 'b'"):
        _ = a + Moments.of(x, features="b")
    with pytest.raises(ValueError, match="of 3 and of 2 features"):
        _ = a + Moments.of(x[:, :2], features="a")
    with pytest.raises(ValueError, match="both have to say of how many"):
        _ = a + Moments(a.mean, a.covariance, features="a")
    for values, message in [
        ((np.zeros(3), np.eye(2)), r"a covariance of shape \(d, d\), got \(3,\) and \(2, 2\)"),
        ((np.zeros(2), np.array([[1.0, 2], [0, 1]])), "not symmetric"),
        ((np.zeros(2), np.full((2, 2), np.nan)), "not all finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            Moments(*values)
    for empty in (x[:0], iter([])):
        with pytest.raises(ValueError, match="at least one image"):
            Moments.of(empty)


def test_moments_in_files(tmp_path):
    """Ours come back whole; so do published ones, of moments or of features."""
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    moments = Moments.of(x, features="a", size=(4, 8))
    eqd.metrics.write_moments(tmp_path / "ours.npz", moments)
    read = eqd.metrics.read_moments(tmp_path / "ours.npz")
    assert_same(read, moments, 0)
    assert read.digest == moments.digest
    mu, sigma = x.mean(0), np.cov(x, rowvar=False)
    np.savez(tmp_path / "adm.npz", mu=mu, sigma=sigma, mu_s=mu[:2], sigma_s=sigma[:2, :2])
    read = eqd.metrics.read_moments(tmp_path / "adm.npz")
    assert read.num is None and read.mean.dtype == np.float64
    np.testing.assert_array_equal(read.covariance, sigma)
    spatial = eqd.metrics.read_moments(tmp_path / "adm.npz", ("mu_s", "sigma_s"))
    np.testing.assert_array_equal(spatial.covariance, sigma[:2, :2])
    np.savez(tmp_path / "score_sde.npz", pool_3=x, logits=x)
    assert eqd.metrics.read_moments(tmp_path / "score_sde.npz").digest == moments.digest


def test_files_without_moments(tmp_path):
    np.savez(tmp_path / "images.npz", np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="has no mu and sigma, but arr_0"):
        eqd.metrics.read_moments(tmp_path / "images.npz")
    np.savez(tmp_path / "pickle.npz", mu=np.array([{}], object), sigma=np.eye(1))
    (tmp_path / "damaged.npz").write_bytes((tmp_path / "images.npz").read_bytes()[:-40])
    (tmp_path / "statistics.pkl").write_bytes(pickle.dumps({"mu": 1}))
    (tmp_path / "empty.npz").touch()
    for name in ("pickle.npz", "damaged.npz", "statistics.pkl", "empty.npz"):
        with pytest.raises(ValueError, match=f"cannot read .*{name}.* pickles are not loaded"):
            eqd.metrics.read_moments(tmp_path / name)
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        eqd.metrics.write_moments(tmp_path / "moments", Moments(np.zeros(1), np.eye(1)))
