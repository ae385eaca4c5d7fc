r"""Replacement constraints: inpainting, colourisation and the like.

Let the rows of $A$ be orthonormal — some pixels, the grey axis of RGB, the coarse coefficients of a
wavelet transform — and let $y = Ax_0$ be known. After a step to level $(\alpha_s, \sigma_s)$ the
known part of the state becomes a fresh sample of its distribution there,

$$x \leftarrow x + A^\top(\alpha_s y + \sigma_s z - Ax), \qquad z \sim \mathcal N(0, I), \tag{1}$$

and the rest, orthogonal to it, stays (Song et al. 2021, appendix I.2 and I.3, at the level that $x$
has *after* the step; the published code noises the known part to the level before it). After the
last step $\alpha_s = 1$ and $\sigma_s = 0$: the known part is the data, the rest the denoised
estimate.

**What this samples.** Not quite $p(x_0|y)$: the rest depends on $y$ through the noisy state
alone, so it may not fit. Repeating each step ([`eqdiff.Constrained`][], RePaint) mends that at a
multiple of the cost; [`eqdiff.PosteriorGuidance`][] guides the denoiser by $y$ instead.
"""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from .._check import check_example, is_traced
from .._guidance import check_partial_isometry, LinearOperator, output_shape, transpose_of
from .._types import Example, Key
from .base import Step
from .constraint import AbstractConstraint


class AbstractReplacement(AbstractConstraint):
    """Known coefficients of a sample in some orthonormal system, replaced by equation (1)."""

    @abc.abstractmethod
    def known(self, x: Example) -> Example:
        """$y$ of a sample shaped like `x`, in its precision.

        **Raises:** `ValueError` for a shape that does not fit what is known.
        """

    @abc.abstractmethod
    def put(self, x: Example, value: Example) -> Example:
        r"""$x + A^\top(v - Ax)$: the state with $v$, shaped like `known(x)`, for its known part."""

    def __call__(self, step: Step, x: Example, x0: Example, *, key: Key) -> Example:
        y = self.known(x)
        noise = jax.random.normal(key, y.shape, x.dtype)
        return self.put(x, step.alpha_s * y + step.sigma_s * noise)


_SOFT = (
    "Inpaint: the mask has values other than 0 and 1. For a soft mask choose a threshold, for "
    "example mask > 0.5."
)


def _check_mask(image: ArrayLike, mask: ArrayLike) -> None:
    shape, expected = np.shape(mask), np.shape(image)
    ends = zip(shape[::-1], expected[::-1], strict=False)
    if len(shape) > len(expected) or any(m not in (1, n) for m, n in ends):
        raise ValueError(
            f"Inpaint: the mask has shape {shape}, which does not broadcast to that of the image, "
            f"{expected}."
        )
    if is_traced(mask):
        return
    mask = np.asarray(mask)
    if not np.all(np.isin(mask, (0, 1))):
        raise ValueError(_SOFT)
    if not is_traced(image) and not np.all(np.isfinite(np.asarray(image)) | (mask == 0)):
        raise ValueError("Inpaint: a known element of the image is not finite; mask it out.")


def _check_finite(owner: str, value: ArrayLike) -> None:
    if not is_traced(value) and not np.all(np.isfinite(np.asarray(value))):
        raise ValueError(f"{owner}: the known values are not finite.")


class Inpaint(AbstractReplacement):
    """Known pixels: $A$ picks those of a mask.

    **Example:**

    ```python
    constraint = eqd.Inpaint(jnp.ones(4), jnp.asarray([1, 1, 0, 0]))
    sampler = eqd.PredictorCorrector(10, constrain=constraint)
    x0 = sampler(eqd.GaussianDenoiser(eqd.VPSDE()), jnp.ones(4), key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*,
        ICLR 2021, appendix I.2.
    """

    image: Float[Array, "..."]
    mask: Bool[Array, "..."]

    def __init__(self, image: ArrayLike, mask: ArrayLike):
        """**Arguments:**

        - `image`: one example, of any shape; only its known elements matter.
        - `mask`: true (or 1) where it is known. Of the shape of `image`, or one that broadcasts to
            it: `(height, width)` is for all channels.

        **Raises:** `ValueError` for an integer image, a mask of another shape or with values other
        than 0 and 1, and a known element that is not finite.
        """
        # Checked as they were given: inside jit, asarray makes tracers of known numbers.
        _check_mask(image, mask)
        checked = not is_traced(mask)
        image, mask = jnp.asarray(image), jnp.asarray(mask)
        check_example("Inpaint", image)
        if not checked:
            zero, one = (jnp.asarray(value, mask.dtype) for value in (0, 1))
            mask = eqx.error_if(mask, jnp.any((mask != zero) & (mask != one)), _SOFT)
        known = jnp.asarray(mask, bool)
        known = known.reshape((1,) * (image.ndim - known.ndim) + known.shape)
        self.mask = jnp.broadcast_to(known, image.shape)
        # Unknown elements may be anything, NaN too; they must not reach a product.
        self.image = jnp.where(self.mask, image, 0)

    def known(self, x):
        if x.shape != self.image.shape:
            raise ValueError(
                f"Inpaint: the sample has shape {x.shape}, the image {self.image.shape}; they "
                "must agree. For a batch build the sampler inside jax.vmap."
            )
        return self.image.astype(x.dtype)

    def put(self, x, value):
        return jnp.where(self.mask, value, x)


class Colourise(AbstractReplacement):
    r"""A known grey image: $A$ projects the channels onto the grey axis $w$,
    $y = w \cdot x / \|w\|$.

    **Example:**

    ```python
    constraint = eqd.Colourise(jnp.zeros((4, 4)))
    denoiser, x1 = eqd.GaussianDenoiser(eqd.VPSDE()), jnp.ones((3, 4, 4))
    sampler = eqd.PredictorCorrector(10, constrain=constraint)
    x0 = sampler(denoiser, x1, key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*,
        ICLR 2021, appendix I.3.
    """

    grey: Float[Array, "1 *space"]
    weights: tuple[float, ...] = eqx.field(static=True)

    def __init__(
        self,
        grey: ArrayLike,
        *,
        weights: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3),
    ):
        r"""**Arguments:**

        - `grey`: the grey image, `(height, width)` or `(1, height, width)`, on the scale of the
            channels.
        - `weights`: $w$: how grey is made of the channels; a mean by default,
            $(0.299, 0.587, 0.114)$ for luminance.

        **Raises:** `ValueError` for a grey image that is integer, of another shape or not finite,
            and for weights that do not sum to 1 (grey pixels would not keep their value).
        """
        _check_finite("Colourise", grey)
        grey = jnp.asarray(grey)
        check_example("Colourise", grey)
        if grey.ndim == 2:
            grey = grey[None]
        if grey.ndim != 3 or grey.shape[0] != 1:
            raise ValueError(
                f"Colourise: the grey image has shape {grey.shape}, expected (height, width) or "
                "(1, height, width). For an RGB image whose channels are equal write image[0]; for "
                "a colour image write image.mean(0)."
            )
        if not math.isclose(sum(weights), 1, abs_tol=1e-6):
            raise ValueError(f"Colourise(weights={weights}): expected weights that sum to 1.")
        self.grey, self.weights = grey, tuple(float(w) for w in weights)

    def _axis(self, x: Example) -> Float[Array, "channels 1 1"]:
        axis = np.asarray(self.weights)
        return jnp.asarray(axis / np.linalg.norm(axis), x.dtype)[:, None, None]

    def known(self, x):
        expected = (len(self.weights), *self.grey.shape[1:])
        if x.shape != expected:
            raise ValueError(
                f"Colourise: the sample has shape {x.shape}, expected {expected}, for "
                f"{len(self.weights)} weights and a grey image of shape {self.grey.shape}. For a "
                "batch build the sampler inside jax.vmap."
            )
        return self.grey.astype(x.dtype) / math.hypot(*self.weights)

    def put(self, x, value):
        axis = self._axis(x)
        return x + axis * (value - jnp.sum(axis * x, axis=0, keepdims=True))


class Replace(AbstractReplacement):
    r"""Known coefficients in any orthonormal system: equation (1) as it stands.

    [`eqdiff.Inpaint`][] is `Replace(mask * image, lambda x: mask * x)`.

    **Example:**

    ```python
    pool = lambda x: 2 * x.reshape(3, 4, 2, 4, 2).mean((2, 4))  # rows of length 1
    sampler = eqd.PredictorCorrector(10, constrain=eqd.Replace(jnp.zeros((3, 4, 4)), pool))
    denoiser, x1 = eqd.GaussianDenoiser(eqd.VPSDE()), jnp.ones((3, 8, 8))
    x0 = sampler(denoiser, x1, key=jax.random.key(0))
    ```
    """

    value: Float[Array, "..."]
    operator: LinearOperator

    def __init__(self, value: ArrayLike, operator: LinearOperator):
        r"""**Arguments:**

        - `value`: $y$.
        - `operator`: $x \mapsto Ax$, linear, from one example to what is shaped like `value`; its
            rows orthonormal (or zero). Make it an `eqx.Module` if it holds arrays that are traced.

        **Raises:** `ValueError` for values that are integers or not finite; when called, for an
            operator that does not return their shape or whose rows are not orthonormal.
        """
        _check_finite("Replace", value)
        value = jnp.asarray(value)
        check_example("Replace", value)
        self.value, self.operator = value, operator

    def known(self, x):
        shape = output_shape("Replace", self.operator, x)
        if shape != self.value.shape:
            raise ValueError(
                f"Replace: for a sample of shape {x.shape} the operator returns shape {shape}, "
                f"but the value has {self.value.shape}; they must agree. For a batch build the "
                "sampler inside jax.vmap."
            )
        check_partial_isometry("Replace", self.operator, x)
        return self.value.astype(x.dtype)

    def put(self, x, value):
        return x + transpose_of(self.operator, x)(value - self.operator(x))
