r"""Classifier-free guidance.

A network trained with its conditioning $y$ and, for some of the examples, with a null in its place,
has learned two scores. Their difference is the gradient of an implicit classifier, $\nabla\log
p_t(x|y) - \nabla\log p_t(x) = \nabla_x\log p_t(y|x)$, and going $s$ times as far,

$$\hat\varepsilon = \hat\varepsilon_\varnothing
  + s\,(\hat\varepsilon_y - \hat\varepsilon_\varnothing), \qquad
  \hat x_0 = \hat x_{0,\varnothing} + s\,(\hat x_{0,y} - \hat x_{0,\varnothing}), \tag{1}$$

is classifier guidance without a classifier. Here **s = 0 is the unconditional model and s = 1 the
conditional one, unguided**; Ho & Salimans (2022, equation 6) write
$(1 + w)\,\hat\varepsilon_y - w\,\hat\varepsilon_\varnothing$ with $w = s - 1$.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._check import check_finite
from .._denoiser import AbstractDenoiser, AbstractWrapper, Estimate
from .._types import Args, Example, Key, Scalar, Time


class ClassifierFree(AbstractWrapper):
    r"""Extrapolates from the null estimate through the conditional one, equation (1): scale 1 is
    unguided.

    Two network calls. A learned variance is the conditional call's.

    To train both, give the network's conditions a `dropout`, as in the example: in training each is
    replaced by a learned null for a tenth of the examples, and you can leave out `null` here. A
    network of your own needs a null among its inputs, such as one more class, which the loss puts
    in place of `args` as often: `jnp.where(jax.random.bernoulli(key, 0.1), null, y)`.

    With several conditions, `null` may be a function that leaves out some of them,
    `null=lambda args: {**args, "label": None}`: the difference is then the gradient of
    $\log p_t(y_1|x, y_2)$, and the others are followed without guidance.

    **Example:**

    ```python
    conditions = eqd.nn.ClassCondition(10, dropout=0.1)
    net = eqd.nn.MLP(2, 2, conditions=conditions, key=jax.random.key(0))
    x0 = eqd.ClassifierFree(eqd.Denoiser(net, eqd.VPSDE()), 3.0)(0.5, jnp.ones(2), 7).x0
    ```

    ??? cite "Reference"

        Ho & Salimans, *Classifier-Free Diffusion Guidance*, 2022.
    """

    denoiser: AbstractDenoiser
    scale: float | Array
    null: Args

    def __init__(self, denoiser: AbstractDenoiser, scale: float | Array, null: Args = None):
        r"""**Arguments:**

        - `denoiser`: a denoiser trained with and without conditioning.
        - `scale`: $s$ of equation (1): 0 is unconditional, 1 conditional, more is guided; Ho &
            Salimans's $w$ is $s - 1$.
        - `null`: what stood for "no condition" in training, in place of `args`; or a function of
            `args` that returns it. `None` is the learned null of every condition of a network.

        **Raises:** `ValueError` for a scale that is not finite.
        """
        check_finite(self, scale=scale)
        self.denoiser, self.scale, self.null = denoiser, scale, null

    def __call__(
        self, t: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Estimate:
        given, null = both(self, t, x, args, key)
        scale = jnp.asarray(self.scale, x.dtype)
        # At scale 1 this is the conditional estimate to the last digit, which null + scale * (given
        # − null) is not.
        x0, noise = jax.tree.map(
            lambda a, b: a + (scale - 1) * (a - b), (given.x0, given.noise), (null.x0, null.noise)
        )
        return Estimate(x0, noise, given.raw_variance)


def both(
    guidance: Any, t: Time, x: Example, args: Args, key: Key | None
) -> tuple[Estimate, Estimate]:
    """The estimates with the condition and with `guidance.null` in its place."""
    if args is None:
        raise ValueError(
            f"{type(guidance).__name__} guides towards args, but was given none: write "
            "sampler(denoiser, x1, args) or log_likelihood(denoiser, x, args), or use the denoiser "
            "unwrapped if it takes no condition."
        )
    denoiser, null = guidance.denoiser, guidance.null
    null = null(args) if callable(null) else null
    return denoiser(t, x, args, key=key), denoiser(t, x, null, key=key)


def dot(a: Example, b: Example) -> Scalar:
    """The inner product of two examples."""
    return jnp.sum(a * b)


def ratio(a: Scalar, b: Scalar) -> Scalar:
    """a/b for b ≥ 0, and 0 for 0/0."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
