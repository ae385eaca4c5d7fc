"""Many samples: each depends on the key and its own index alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqdiff as eqd


class _Scaled(eqd.AbstractDenoiser):
    """Gaussian data whose mean is `args`, with an array of its own to place on devices."""

    process: eqd.AbstractProcess
    std: jax.Array
    parameterisation = eqd.PredictNoise()
    variance = eqd.FixedSmall()

    def __call__(self, t, x, args=None, *, key=None):
        mean = 0.0 if args is None else args["mean"]
        return eqd.GaussianDenoiser(self.process, mean, self.std)(t, x)


DENOISER = _Scaled(eqd.cosine_schedule(50), jnp.array([0.5, 1.0, 2.0]))
SAMPLER = eqd.DDIM(4, eta=1.0)
KEY = jax.random.key(7)


def draw(num, **options):
    return eqd.generate(SAMPLER, DENOISER, num, (3,), key=KEY, **options)


@pytest.fixture(scope="module")
def reference():
    """Sample by sample, with the sampler itself and no batch."""

    @jax.jit
    def one(i):
        prior, path = jax.random.split(jax.random.fold_in(KEY, i))
        return SAMPLER(DENOISER, DENOISER.process.prior_sample((3,), key=prior), key=path)

    return np.stack([one(jnp.uint32(i)) for i in range(7)])


@pytest.mark.parametrize(("num", "batch_size"), [(7, 256), (7, 2), (7, 3), (5, 3), (1, 1)])
def test_samples_do_not_depend_on_chunks_or_number(num, batch_size, reference):
    samples = draw(num, batch_size=batch_size)
    assert isinstance(samples, np.ndarray) and samples.shape == (num, 3)
    np.testing.assert_allclose(samples, reference[:num], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [2, 3, 256])
def test_samples_do_not_depend_on_devices(batch_size, reference):
    assert jax.device_count() == 2
    mesh = jax.make_mesh((2,), ("data",))
    samples = draw(7, batch_size=batch_size, mesh=mesh)
    np.testing.assert_allclose(samples, reference, rtol=2e-5, atol=1e-6)


def test_weights_may_sit_on_one_device(reference):
    mesh = jax.make_mesh((2,), ("data",))
    denoiser = jax.device_put(DENOISER, jax.devices()[1])
    samples = eqd.generate(SAMPLER, denoiser, 7, (3,), key=KEY, mesh=mesh)
    np.testing.assert_allclose(samples, reference, rtol=2e-5, atol=1e-6)


def test_samples_are_different_and_follow_the_key(reference):
    assert len(np.unique(reference.round(6), axis=0)) == 7
    other = eqd.generate(SAMPLER, DENOISER, 7, (3,), key=jax.random.key(8))
    assert not np.allclose(other, reference)


class _KeyNoise(eqd.AbstractSampler):
    """Returns what the prior would be, were it drawn with the sampler's key."""

    num_calls = 0

    def trajectory(self, denoiser, x1, args=None, *, key=None):
        raise NotImplementedError

    def __call__(self, denoiser, x1, args=None, *, key=None):
        return denoiser.process.prior_sample(x1.shape, key=key) - x1


def test_prior_and_path_have_keys_of_their_own():
    difference = eqd.generate(_KeyNoise(), DENOISER, 4, (3,), key=KEY)
    assert np.all(np.abs(difference) > 1e-4)


@pytest.mark.parametrize("mesh", [False, True])
def test_each_sample_has_its_own_args(mesh):
    """Means far apart, so that each sample tells its own, also in a short last batch."""
    means = 100.0 * np.arange(21).reshape(7, 3)
    mesh = jax.make_mesh((2,), ("data",)) if mesh else None
    args = {"mean": jnp.asarray(means, float)}
    samples = draw(7, args=args, batch_size=3, mesh=mesh)
    assert np.all(np.abs(samples - means) < 15)


def test_one_compilation_for_all_chunks():
    calls = []

    class Counting(eqd.AbstractSampler):
        num_calls = 0

        def trajectory(self, denoiser, x1, args=None, *, key=None):
            raise NotImplementedError

        def __call__(self, denoiser, x1, args=None, *, key=None):
            calls.append(x1.shape)
            return x1

    eqd.generate(Counting(), DENOISER, 7, (3,), key=KEY, batch_size=2)
    assert calls == [(3,)]


def test_progress_counts_samples(capsys):
    draw(7, batch_size=3, progress=True)
    assert "7/7" in capsys.readouterr().err


def test_generate_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="leading axis of length num=7"):
        draw(7, args={"mean": jnp.zeros((6, 3))})
    with pytest.raises(ValueError, match="leading axis"):
        draw(7, args={"mean": jnp.asarray(1.0)})
    for options in ({"num": 0}, {"num": 3, "batch_size": 0}):
        with pytest.raises(ValueError, match="positive whole number"):
            draw(**options)


def test_images_and_a_network(getkey):
    net = eqx.nn.Conv2d(1, 1, 3, padding=1, key=getkey())
    denoiser = eqd.Denoiser(lambda c_noise, x, args, key: net(x), eqd.VPSDE())
    samples = eqd.generate(eqd.DDIM(2), denoiser, 3, (1, 4, 4), key=KEY, batch_size=2)
    assert samples.shape == (3, 1, 4, 4) and np.all(np.isfinite(samples))
