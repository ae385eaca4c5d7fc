"""Operators against SciPy, NumPy and closed forms; their adjoints by the identity that defines
them.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from scipy import ndimage
from toys import quick_jit

import eqdiff as eqd


ops = eqd.operators
KERNEL = np.random.default_rng(1).standard_normal((3, 5))
KNOWN = np.random.default_rng(2).uniform(size=(6, 8)) < 0.4
OPERATORS = {
    "mask": (ops.Mask(KNOWN), (2, 6, 8)),
    "mask_all": (ops.Mask(KNOWN), (6, 8)),
    "downsample": (ops.Downsample(2), (2, 6, 8)),
    "downsample_each": (ops.Downsample((3, 2, 4)), (2, 3, 6, 8)),
    "blur": (ops.Blur(KERNEL), (2, 6, 8)),
    "blur_reflecting": (ops.Blur(KERNEL, padding=eqd.ReflectingPadding()), (2, 6, 8)),
    "blur_sphere": (ops.Blur(KERNEL, padding=eqd.LatLonPadding(), axes=(0, 1)), (6, 8)),
    "blur_gaussian": (ops.GaussianBlur(1.2), (2, 3, 6, 8)),
    "fourier": (ops.Fourier(KNOWN), (2, 6, 8)),
    "fourier_1d": (ops.Fourier(KNOWN[0], axes=(0,)), (8,)),
    "radon": (ops.Radon(np.array([0.0, 0.4, 2.0])), (2, 6, 8)),
    "radon_image": (ops.Radon(np.array([0.3]), bins=5), (6, 7)),
}


@pytest.mark.parametrize("case", OPERATORS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_adjoints(case, dtype, getkey, request):
    """<u, Ax> = <Aᵀu, x> for a batch, and Ax linear, in the precision of x."""
    if dtype == jnp.float64:
        request.getfixturevalue("x64")
    operator, shape = OPERATORS[case]
    x = jax.random.normal(getkey(), (3, *shape), dtype)
    example = jax.ShapeDtypeStruct(shape, dtype)
    out = jax.eval_shape(operator, example)
    u = jax.random.normal(getkey(), (3, *out.shape), dtype)

    @quick_jit
    def run(x, u):
        transpose = jax.linear_transpose(operator, example)
        return jax.vmap(operator)(x), jax.vmap(lambda u: transpose(u)[0])(u)

    image, back = run(x, u)
    assert image.dtype == back.dtype == dtype and back.shape == x.shape
    tolerance = 2e-5 if dtype == jnp.float32 else 1e-12
    for i in range(3):
        left, right = np.vdot(u[i], image[i]), np.vdot(back[i], x[i])
        scale = np.linalg.norm(u[i]) * np.linalg.norm(image[i])
        assert abs(left - right) < tolerance * scale
    both = operator(x[0] - 2 * x[1])
    np.testing.assert_allclose(both, image[0] - 2 * image[1], atol=20 * tolerance)


def test_a_mask_never_sees_what_is_missing(getkey):
    x = np.array(jax.random.normal(getkey(), (2, 6, 8), jnp.float32))
    x[:, ~KNOWN] = np.nan
    mask = ops.Mask(KNOWN)
    y = eqx.filter_jit(mask)(jnp.asarray(x))
    np.testing.assert_array_equal(y, x[:, KNOWN])
    (back,) = jax.linear_transpose(mask, x)(y)
    np.testing.assert_array_equal(back, np.where(KNOWN, x, 0))


def test_downsampling():
    """Means of a plane are its values in the middle of the blocks; NumPy sums the rest."""
    plane = 2.0 * np.arange(12)[:, None] - 0.5 * np.arange(8) + 1
    small = ops.Downsample((3, 2), axes=(0, 1))(jnp.asarray(plane))
    middle = 2.0 * (3 * np.arange(4)[:, None] + 1) - 0.5 * (2 * np.arange(4) + 0.5) + 1
    np.testing.assert_allclose(small, middle, rtol=1e-6)
    signal = np.random.default_rng(0).standard_normal((3, 12))
    expected = np.add.reduceat(signal, np.arange(0, 12, 4), axis=1) / 4
    np.testing.assert_allclose(ops.Downsample(4)(jnp.asarray(signal)), expected, rtol=1e-5)


MODES = {
    "wrap": eqd.PeriodicPadding(),
    "reflect": eqd.ReflectingPadding(),
    "constant": eqd.ZeroPadding(),
}


@pytest.mark.parametrize("mode", MODES)
def test_blurs_are_scipys(mode, x64):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 6, 9))
    ours = ops.Blur(KERNEL, padding=MODES[mode])(jnp.asarray(x))
    expected = [ndimage.convolve(channel, KERNEL, mode=mode) for channel in x]
    np.testing.assert_allclose(ours, expected, atol=1e-12)
    # A radius larger than the grid: continued again and again.
    ours = ops.GaussianBlur(1.5, padding=MODES[mode])(jnp.asarray(x))
    expected = [ndimage.gaussian_filter(channel, 1.5, mode=mode, radius=8) for channel in x]
    np.testing.assert_allclose(ours, expected, atol=1e-12)
    volume = rng.standard_normal((5, 4, 6))
    kernel = rng.standard_normal((3, 1, 5))
    ours = ops.Blur(kernel, padding=MODES[mode], axes=(0, 1, 2))(jnp.asarray(volume))
    np.testing.assert_allclose(ours, ndimage.convolve(volume, kernel, mode=mode), atol=1e-12)


def test_a_blurred_mode_is_its_transfer_function(x64):
    j = np.arange(32)
    mode = np.cos(2 * np.pi * (3 * j[:, None] + 2 * j) / 32 + 0.4)
    transfer = np.exp(-2 * np.pi**2 * 1.7**2 * (3**2 + 2**2) / 32**2)
    blurred = ops.GaussianBlur(1.7, axes=(0, 1))(jnp.asarray(mode))
    np.testing.assert_allclose(blurred, transfer * mode, atol=1e-6)


def test_fourier_coefficients(x64, getkey):
    x = jax.random.normal(getkey(), (2, 6, 8))
    every = ops.Fourier(np.ones((6, 8), bool))(x)
    np.testing.assert_allclose(jnp.sum(every**2), jnp.sum(x**2))
    truth = np.fft.fftn(np.asarray(x), axes=(1, 2))[:, KNOWN] / np.sqrt(48)
    real, imaginary = np.asarray(ops.Fourier(KNOWN)(x))
    np.testing.assert_allclose(real + 1j * imaginary, truth, atol=1e-12)
    # With both f and -f, the adjoint of what is measured is a projection of the data.
    frequencies = np.abs(np.fft.fftfreq(6, 1 / 6))[:, None] + np.abs(np.fft.fftfreq(8, 1 / 8))
    low = ops.Fourier(frequencies < 3)
    project = quick_jit(lambda x: jax.linear_transpose(low, x)(low(x))[0])
    np.testing.assert_allclose(project(project(x)), project(x), atol=1e-12)
    assert np.linalg.norm(project(x)) < 0.8 * np.linalg.norm(x)


ANGLES = np.array([0.0, 0.4, np.pi / 2, 2.5])


def _gaussian(n):
    """A sheared Gaussian off the middle of a square of side 2, and its projections."""
    step, mean, covariance = (
        2 / n,
        np.array([0.2, -0.1]),
        np.array([[0.03, 0.012], [0.012, 0.015]]),
    )
    v, u = step * (np.mgrid[:n, :n] - (n - 1) / 2)
    offset = np.stack([u - mean[0], v - mean[1]], -1)
    image = np.exp(-0.5 * np.einsum("...i,ij,...j", offset, np.linalg.inv(covariance), offset))
    s = step * (np.arange(n) - (n - 1) / 2)
    along = np.stack([np.cos(ANGLES), np.sin(ANGLES)], -1)
    spread = np.einsum("ai,ij,aj->a", along, covariance, along)[:, None]
    mass = 2 * np.pi * np.sqrt(np.linalg.det(covariance))
    density = np.exp(-0.5 * (s - along @ mean[:, None]) ** 2 / spread)
    return image, mass * density / np.sqrt(2 * np.pi * spread), step


def _disc(n):
    step = 2 / n
    v, u = step * (np.mgrid[:n, :n] - (n - 1) / 2)
    s = step * (np.arange(n) - (n - 1) / 2)
    chord = 2 * np.sqrt(np.maximum(0.6**2 - (s - 0.1 * np.cos(ANGLES[:, None])) ** 2, 0))
    return ((u - 0.1) ** 2 + v**2 < 0.6**2).astype(float), chord, step


@pytest.mark.parametrize(("make", "order"), [(_gaussian, 2), (_disc, 1)])
def test_radon_converges(make, order, x64):
    """To the projections in closed form, at second order where the image is smooth."""
    errors = []
    for n in (24, 48, 96):
        image, projection, step = make(n)
        ours = step * eqx.filter_jit(ops.Radon(ANGLES, bins=n))(jnp.asarray(image))
        errors.append(np.mean(np.abs(ours - projection)))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(orders > order - 0.25), (errors, orders)
    assert errors[-1] < 0.01 * np.max(projection)


def test_radon_is_differentiable_in_its_angles(x64):
    image = jnp.asarray(_gaussian(24)[0])

    def total(angle):
        return jnp.sum(ops.Radon(angle[None])(image) ** 2)

    difference = (total(jnp.asarray(0.4 + 1e-6)) - total(jnp.asarray(0.4 - 1e-6))) / 2e-6
    np.testing.assert_allclose(quick_jit(jax.grad(total))(0.4), difference, rtol=1e-5)


def test_operators_cross_jit_as_pytrees(getkey):
    x = jax.random.normal(getkey(), (2, 6, 8), jnp.float32)
    call = eqx.filter_jit(lambda operator, x: operator(x))
    for case in ("mask", "blur", "blur_gaussian", "fourier", "radon"):
        operator, _ = OPERATORS[case]
        example = x if case != "blur_gaussian" else x[:, None]
        np.testing.assert_allclose(call(operator, example), operator(example), atol=1e-5)


IMAGE = np.zeros((3, 6, 8), np.float32)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ops.Mask(np.ones((6, 8))), "array of bool"),
        (lambda: ops.Mask(np.zeros((6, 8), bool)), "for one element"),
        (lambda: ops.Mask(np.ones((8, 6), bool)), r"mask has \(8, 6\)"),
        (lambda: ops.Mask(jax.jit(lambda m: ops.Mask(m).indices)(np.ones(3, bool))), "traced"),
        (lambda: ops.Downsample(0), "factor=0"),
        (lambda: ops.Downsample(4), "factor that divides"),
        (lambda: ops.Downsample((2, 2, 2)), "one for all or one for each"),
        (lambda: ops.Downsample(2, axes=(3,)), "axes of it are none|are none"),
        (lambda: ops.Downsample(2, axes=(1, -2)), "different axes"),
        (lambda: ops.Blur(np.ones((2, 3))), "odd number"),
        (lambda: ops.Blur(np.full(3, np.nan)), "not finite"),
        (lambda: ops.Blur(np.ones(3)), "of 1. Give it axes="),
        (lambda: ops.GaussianBlur(-1.0), "std=-1"),
        (lambda: ops.GaussianBlur(1.0, radius=0), "radius=0"),
        (lambda: jax.jit(lambda s: ops.GaussianBlur(s)(IMAGE))(1.0), "give it a radius"),
        (lambda: ops.Fourier(np.ones((6, 6), bool)), r"mask of frequencies has shape \(6, 6\)"),
        (lambda: ops.Fourier(np.ones((1, 1, 1, 1), bool)), "three axes at most"),
        (lambda: ops.Radon(0.3), "one axis of finite numbers"),
        (lambda: ops.Radon(np.zeros(2), bins=0), "bins=0"),
        (lambda: lambda x: ops.Radon(np.zeros(2))(x[0, 0]), "an image"),
        (lambda: lambda x: ops.Downsample(2)(x[0, 0]), r"axes=\(0,\)"),
        (lambda: lambda x: ops.Mask(KNOWN)(x.astype(int)), "normalise"),
        (
            lambda: ops.Blur(np.ones((3, 3)), padding=eqd.MixedPadding((eqd.ZeroPadding(),))),
            "one for each",
        ),
        (lambda: ops.Blur(np.ones((15, 3)), padding=eqd.LatLonPadding()), "6 rows of 8 cells"),
        (lambda: ops.GaussianBlur(1.0, padding=eqd.LatLonPadding()), "got 1 axis"),
    ],
)
def test_bad_arguments(make, match, monkeypatch):
    # Without the type checks of the test suite, which would answer before eqdiff does.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=match):
        make()(jnp.asarray(IMAGE))


# What lies beyond an edge.


@pytest.mark.parametrize("mode", ["wrap", "symmetric", "constant"])
def test_padding_is_numpys(mode):
    padding = dict(zip(("wrap", "symmetric", "constant"), MODES.values(), strict=True))[mode]
    x = np.random.default_rng(0).standard_normal((2, 4, 5, 3)).astype(np.float32)
    ours = padding.pad(jnp.asarray(x), (1, 2), ((2, 7), (0, 3)))
    np.testing.assert_array_equal(ours, np.pad(x, ((0, 0), (2, 7), (0, 3), (0, 0)), mode=mode))
    mixed = eqd.MixedPadding((padding, eqd.PeriodicPadding()))
    expected = np.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)), mode=mode)
    expected = np.pad(expected, ((0, 0), (0, 0), (2, 2), (0, 0)), mode="wrap")
    np.testing.assert_array_equal(mixed.pad(jnp.asarray(x), (1, 2), ((1, 1), (2, 2))), expected)


def test_beyond_a_pole_is_the_other_side():
    """A function of the point on the sphere, whose formula goes on over the poles."""

    def field(rows, cells, north=0, south=0, around=0):
        latitude = (np.arange(-north, rows + south) + 0.5) * np.pi / rows - np.pi / 2
        longitude = np.arange(-around, cells + around) * 2 * np.pi / cells
        x = np.cos(latitude)[:, None] * np.cos(longitude)
        y = np.cos(latitude)[:, None] * np.sin(longitude)
        z = np.sin(latitude)[:, None]
        return np.stack([x * y + z, np.exp(x - 0.5 * y)])

    inside = jnp.asarray(field(6, 8), jnp.float32)
    padded = eqd.LatLonPadding().pad(inside, (1, 2), ((2, 6), (3, 3)))
    np.testing.assert_allclose(padded, field(6, 8, 2, 6, 3), rtol=1e-5, atol=1e-6)
    # The height above it has another.
    sphere = eqd.LatLonPadding(eqd.ReflectingPadding())
    volume = sphere.pad(inside, (0, 1, 2), ((1, 0), (1, 1), (0, 0)))
    np.testing.assert_array_equal(volume[0], volume[1])
    np.testing.assert_allclose(volume[1:], field(6, 8, 1, 1), rtol=1e-5, atol=1e-6)
