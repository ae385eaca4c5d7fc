"""Super-resolution against the official `SuperResModel`, and bilinear interpolation written out in
NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden, load_golden_config, random_network
from toys import quick_jit

import eqdiff as eqd
import eqdiff.interop as interop
import eqdiff.nn as nn


FILE = "public_idiff_sr"


def official_state():
    return {
        key.removeprefix("state/"): value.astype(np.float32)
        for key, value in load_golden(FILE).items()
        if key.startswith("state/")
    }


@pytest.fixture(scope="module", params=[jnp.float32, jnp.float64], ids=["float32", "float64"])
def official(request):
    """Outputs and gradients of the official weights, at the official inputs."""
    dtype = request.param
    if dtype == jnp.float64 and not jax.config.jax_enable_x64:
        pytest.skip("needs float64 (EQDIFF_TEST_X64=0)")
    config = load_golden_config(FILE)["kwargs"]
    config = {**config, "in_channels": 2 * config["in_channels"]}
    net = nn.SuperResolution(interop.openai_unet(official_state(), config, compute_dtype=dtype))
    net = jax.tree.map(lambda p: p.astype(dtype) if eqx.is_inexact_array(p) else p, net)
    golden = load_golden(FILE)
    t, x, low_res, w = (jnp.asarray(golden[f"io/{k}"], dtype) for k in ("t", "x", "low_res", "w"))

    weights, rest = eqx.partition(net, eqx.is_inexact_array)

    @quick_jit
    def run(weights, x):
        def loss(weights, x):
            out = jax.vmap(eqx.combine(weights, rest))(t, x, low_res)
            return jnp.sum(out * w), out

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(weights, x)

    return dtype, run(weights, x)


@pytest.mark.slow
def test_outputs_and_gradients_are_the_official_ones(official):
    dtype, ((grad_net, grad_x), out) = official
    assert out.dtype == dtype
    assert_golden(out, FILE, "io/out")
    assert_golden(grad_x, FILE, "io/grad_x")
    gradients = interop.openai_state_dict(grad_net)
    keys = [key for key in load_golden(FILE) if key.startswith("grad/")]
    assert len(keys) >= 7
    for key in keys:
        assert_golden(gradients[key.removeprefix("grad/")], FILE, key)


def test_official_names_come_back():
    config = {**load_golden_config(FILE)["kwargs"], "in_channels": 6}
    state = official_state()
    net = nn.SuperResolution(interop.openai_unet(state, config))
    again = interop.openai_state_dict(net)
    assert list(again) == list(state)
    for name, value in state.items():
        np.testing.assert_array_equal(again[name], value)
    with pytest.raises(ValueError, match=r"missing: \['in_channels'\]"):
        interop.openai_unet(state, {k: v for k, v in config.items() if k != "in_channels"})


def numpy_bilinear(image, shape):
    """Half-pixel centres, edges repeated: the definition, one axis after the other."""
    for axis, (new, old) in enumerate(zip(shape, image.shape[1:], strict=True), start=1):
        centre = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        below = np.minimum(np.floor(centre).astype(int), max(old - 2, 0))
        weight = (centre - below).reshape(-1, *(1,) * (2 - axis))
        above = np.minimum(below + 1, old - 1)
        image = (1 - weight) * image.take(below, axis) + weight * image.take(above, axis)
    return image


class Echo(eqx.Module):
    """Returns what it sees of the low-resolution image, and remembers nothing else."""

    def __call__(self, c_noise, x, args=None, *, key=None):
        return x[1:] + (0 if args is None else args)


@pytest.mark.parametrize(
    ("small", "large"), [((4, 4), (8, 8)), ((3, 5), (12, 10)), ((2, 1), (7, 4)), ((4, 6), (4, 6))]
)
def test_enlarging_is_bilinear(small, large):
    low_res = np.random.default_rng(0).standard_normal((2, *small))
    x = jnp.zeros((1, *large))
    seen = quick_jit(nn.SuperResolution(Echo()))(0.0, x, jnp.asarray(low_res, x.dtype))
    np.testing.assert_allclose(seen, numpy_bilinear(low_res, large), rtol=1e-5, atol=1e-6)


def test_bfloat16_is_enlarged_in_float32():
    low_res = jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, 3)), jnp.bfloat16)
    seen = nn.SuperResolution(Echo())(0.0, jnp.zeros((1, 9, 9), jnp.bfloat16), low_res)
    assert seen.dtype == jnp.bfloat16
    exact = numpy_bilinear(np.asarray(low_res, np.float64), (9, 9))
    # One rounding, of the result: half a unit in the last of eight bits.
    np.testing.assert_allclose(np.asarray(seen, np.float64), exact, rtol=2.0**-8, atol=1e-6)


def test_area_downsample_is_the_mean_over_squares():
    image = np.random.default_rng(0).standard_normal((3, 4, 6))
    small = nn.area_downsample(jnp.asarray(image, float), 2)
    assert small.shape == (3, 2, 3)
    np.testing.assert_allclose(small[1, 0, 2], image[1, :2, 4:].mean(), rtol=1e-5)
    np.testing.assert_allclose(small.mean(), image.mean(), rtol=1e-4)
    np.testing.assert_array_equal(
        nn.area_downsample(jnp.asarray(image, float), 1), jnp.asarray(image, float)
    )
    # The mean of an enlarged constant is itself, exactly: D U c = c.
    flat = jnp.full((1, 4, 4), 0.3)
    np.testing.assert_allclose(
        nn.area_downsample(nn.SuperResolution(Echo())(0.0, jnp.zeros((1, 8, 8)), flat), 2), flat
    )


def small_unet(num_classes=None):
    return random_network(
        lambda key: nn.UNet(
            nn.UNetShape(2, 2, 8, 1, (1,), (), num_classes=num_classes),
            nn.styles.iddpm(heads=nn.styles.Heads(2), norm_groups=4),
            nn.embeddings.iddpm(),
            key=key,
        )
    )


@pytest.mark.slow
def test_classes_and_files(tmp_path):
    """With a class too: the network itself on both images; a file brings the wrapper back; DDIM
    samples through it."""
    net, schedule = small_unet(num_classes=3), eqd.cosine_schedule(20)
    denoiser = eqd.Denoiser(nn.SuperResolution(net), schedule, variance=eqd.LearnedRange())
    eqd.save_model(tmp_path / "model", denoiser)
    loaded = eqd.load_model(tmp_path / "model")
    assert eqx.tree_equal(loaded, denoiser, typematch=True)

    rng = np.random.default_rng(0)
    x, low_res = (jnp.asarray(rng.standard_normal(s), float) for s in ((1, 4, 4), (1, 2, 2)))
    y = jnp.asarray(2)

    @quick_jit
    def run(x):
        large = jnp.asarray(numpy_bilinear(np.asarray(low_res), (4, 4)), x.dtype)
        both = jnp.concatenate([x, large])
        estimate = loaded(7, x, (low_res, y))
        samples = jax.vmap(lambda l: eqd.DDIM(2)(loaded, x, (l, y)))(jnp.stack([low_res, -low_res]))
        return estimate, net(schedule.c_noise(7).astype(x.dtype), both, y), samples

    estimate, expected, (sample, other) = run(x)
    np.testing.assert_allclose(estimate.noise, expected[:1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(estimate.raw_variance, expected[1:], rtol=1e-4, atol=1e-5)
    assert np.all(np.isfinite(sample)) and not np.allclose(sample, other)


def _zeros(*shape, dtype=jnp.float32):
    return jnp.zeros(shape, dtype)


def _call(args, num_classes=None):
    return nn.SuperResolution(small_unet(num_classes))(0.0, _zeros(1, 4, 4), args)


_FORM = "args is a floating-point image"
REFUSED = [
    (lambda: _call(None), _FORM),
    (lambda: _call(3), _FORM),
    (lambda: _call(_zeros(1, 2, 2, dtype=jnp.int32)), _FORM),
    (lambda: _call((jnp.asarray(1), _zeros(1, 2, 2))), _FORM),
    (lambda: _call(_zeros(2, 1, 2, 2)), r"Batch with jax\.vmap"),
    (lambda: _call(_zeros(1, 8, 4)), r"area_downsample\(x0, factor\)"),
    (
        lambda: _call(_zeros(3, 2, 2)),
        r"have 1 \+ 3 channels, but the network takes 2.*in_channels=4",
    ),
    # A class that the network was not built for, and one that it needs.
    (lambda: _call((_zeros(1, 2, 2), jnp.asarray(1))), "was built without classes"),
    (lambda: _call(_zeros(1, 2, 2), 3), "needs a class"),
    (lambda: nn.area_downsample(_zeros(1, 4, 4), 0), "does not divide"),
    (lambda: nn.area_downsample(_zeros(1, 4, 4), 3), "does not divide"),
    (lambda: nn.area_downsample(_zeros(2, 1, 4, 4), 2), "one floating-point image"),
    (lambda: nn.area_downsample(_zeros(1, 4, 4, dtype=jnp.uint8), 2), "one floating-point image"),
]


@pytest.mark.parametrize(("make", "match"), REFUSED)
def test_refuses(make, match):
    with pytest.raises(ValueError, match=match):
        make()
