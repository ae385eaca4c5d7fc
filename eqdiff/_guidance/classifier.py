r"""Classifier guidance.

By Bayes' rule the score of the data that a classifier $p(y|x_t)$ accepts is a sum of two,

$$\nabla\log p_t(x|y) = \nabla\log p_t(x) + \nabla_x\log p_t(y|x), \tag{1}$$

where the classifier has learned to see through the noise, and a scale $s$ on its gradient
$g = \nabla_x\log p_t(y|x)$ samples from $p_t(x)\,p_t(y|x)^s$. In terms of the estimates, (1) is

$$\hat\varepsilon \leftarrow \hat\varepsilon - s\,\sigma g, \qquad
  \hat x_0 \leftarrow \hat x_0 + s\,\frac{\sigma^2}{\alpha} g \tag{2}$$

(Dhariwal & Nichol 2021, algorithm 2 and equation 14), which serves every sampler. In ancestral
sampling their algorithm 1 shifts the mean of a step instead, to first order in its (learned)
variance Σ,

$$p(x_{t-1}|x_t, y) \propto \mathcal N(x_{t-1}; \mu, \Sigma)\,p(y|x_{t-1})^s
  \approx \mathcal N(x_{t-1}; \mu + s\,\Sigma g, \Sigma), \tag{3}$$

with $g$ taken at $x_t$, as their code does, where the expansion asks for μ. The shift of (2) is the
same with $\beta_t/\sqrt{1-\beta_t}$ in place of Σ.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._check import check_finite
from .._denoiser import AbstractDenoiser, AbstractWrapper, Estimate
from .._types import Args, Example, Key, Scalar, Time
from .base import refuse_no_signal


# log p(y|x_t) as a function of t, x_t and y, for one example.
LogProb = Callable[[Time, Example, Args], Scalar]


class ClassifierGuidance(AbstractWrapper):
    r"""Adds a classifier's gradient to the score,
    $\hat\varepsilon \leftarrow \hat\varepsilon - s\,\sigma\nabla_x\log p(y|x_t)$: equation (2).

    Clipping goes inside, `ClassifierGuidance(Clip(denoiser), ...)`, for the official samples, where
    the guided estimate is not clipped again.

    **Example:**

    ```python
    log_prob = lambda t, x, y: jax.nn.log_sigmoid(y * x.sum())
    denoiser = eqd.ClassifierGuidance(eqd.GaussianDenoiser(eqd.VPSDE()), log_prob, scale=2.0)
    x0 = eqd.DDIM(10)(denoiser, jnp.ones(3), 1.0)
    ```

    ??? cite "Reference"

        Dhariwal & Nichol, *Diffusion Models Beat GANs on Image Synthesis*, NeurIPS 2021, algorithm
        2; Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*,
        ICLR 2021, section 5.
    """

    denoiser: AbstractDenoiser
    log_prob: LogProb
    scale: float | Array

    def __init__(self, denoiser: AbstractDenoiser, log_prob: LogProb, scale: float | Array = 1.0):
        r"""**Arguments:**

        - `denoiser`: the denoiser to guide. It is called with the same `args` as the classifier;
            wrap it in [`eqdiff.FixedArgs`][] if it takes none.
        - `log_prob`: $\log p(y|x_t)$ in nats, as `log_prob(t, x, args)`: $t$ is the process's time,
            `args` is $y$, and the result is one number, differentiable in `x`. Make it an
            `eqx.Module` if it holds arrays, such as an [`eqdiff.Classifier`][].
        - `scale`: $s$; 1 is Bayes' rule, 0 is unguided.

        **Raises:** `ValueError` for a scale that is not finite, or a process that ends without
        signal ($\alpha = 0$, where the shift of $\hat x_0$ is infinite).
        """
        check_finite(self, scale=scale)
        refuse_no_signal(
            "ClassifierGuidance", denoiser, "moving the score moves the estimate infinitely far"
        )
        self.denoiser, self.log_prob, self.scale = denoiser, log_prob, scale

    def __call__(
        self, t: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Estimate:
        estimate = self.denoiser(t, x, args, key=key)
        alpha, sigma = self.process.levels(t, like=x)
        shift = sigma * _gradient("ClassifierGuidance", self.log_prob, self.scale, t, x, args)
        return Estimate(
            estimate.x0 + (sigma / alpha) * shift, estimate.noise - shift, estimate.raw_variance
        )


class MeanShift(eqx.Module):
    r"""Shifts the mean of every ancestral step by $s\,\Sigma\nabla_x\log p(y|x_t)$: equation (3).

    An option of the sampler, which alone knows Σ:
    `Ancestral(250, guidance=MeanShift(log_prob))(denoiser, x1, y, key=key)`. The denoiser and its
    clipping stay as they are, and Σ is that of the respaced schedule.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(50))
    shift = eqd.MeanShift(lambda t, x, y: jax.nn.log_sigmoid(y * x.sum()))
    x0 = eqd.Ancestral(guidance=shift)(denoiser, jnp.ones(3), 1.0, key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Dhariwal & Nichol, *Diffusion Models Beat GANs on Image Synthesis*, NeurIPS 2021, algorithm
        1.
    """

    log_prob: LogProb
    scale: float | Array

    def __init__(self, log_prob: LogProb, scale: float | Array = 1.0):
        r"""**Arguments:**

        - `log_prob`, `scale`: as for [`eqdiff.ClassifierGuidance`][].

        **Raises:** `ValueError` for a scale that is not finite.
        """
        check_finite(self, scale=scale)
        self.log_prob, self.scale = log_prob, scale

    def __call__(self, t: Time, x: Example, args: Args = None) -> Example:
        r"""$s\,\nabla_x\log p(y|x_t)$, shaped like `x`: what Σ is multiplied by."""
        return _gradient("MeanShift", self.log_prob, self.scale, t, x, args)


def _gradient(
    owner: str, log_prob: LogProb, scale: float | Array, t: Time, x: Example, args: Args
) -> Example:
    def one_number(x):
        value = jnp.asarray(log_prob(t, x, args))
        if value.shape != ():
            raise ValueError(
                f"{owner}: log_prob returned shape {value.shape}, expected one number, log "
                "p(y|x). For the logits of a classifier write lambda t, x, y: "
                "jax.nn.log_softmax(classifier(t, x))[y]."
            )
        return value

    return jnp.asarray(scale, x.dtype) * jax.grad(one_number)(x).astype(x.dtype)
