r"""The one interface.

A denoiser estimates from $x_t = \alpha_t x_0 + \sigma_t\varepsilon$ what was there before the noise, and the noise,

$$\hat x_0 \approx \mathbb E[x_0 | x_t], \qquad \hat\varepsilon \approx \mathbb E[\varepsilon | x_t], \qquad
  x_t = \alpha_t\hat x_0 + \sigma_t\hat\varepsilon, \qquad \nabla\log p_t(x_t) = -\hat\varepsilon / \sigma_t. \tag{1}$$

Everything else — samplers, losses, likelihoods — takes any denoiser. Guidance and thresholding are denoisers that wrap
one: moving $\hat x_0$ by δ moves $\hat\varepsilon$ by $-(\alpha/\sigma)\delta$.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ._gaussian import is_traced
from ._parameterisation import AbstractParameterisation, PredictNoise
from ._process import AbstractProcess, AbstractSDE
from ._schedule import Schedule
from ._types import Args, Example, Key, Network, Scalar, Time
from ._variance import AbstractVariance, FixedLarge


class Estimate(eqx.Module):
    r"""What a denoiser returns: $\hat x_0$, $\hat\varepsilon$ and the raw variance outputs of the same call.

    - `x0`, `noise`: the estimates, shaped like $x$.
    - `raw_variance`: the network's extra outputs, shaped like $x$, or `None` where no variance is learned.
    """

    x0: Example
    noise: Example
    raw_variance: Example | None = None

    def move(self, delta: Example, alpha: Scalar, sigma: Scalar) -> "Estimate":
        r"""$\hat x_0 + \delta$ and $\hat\varepsilon - (\alpha/\sigma)\delta$: invariant (1) kept to full precision."""
        ratio = (alpha / sigma).astype(delta.dtype)
        return Estimate(self.x0 + delta, self.noise - ratio * delta, self.raw_variance)


class AbstractDenoiser(eqx.Module):
    r"""`denoiser(t, x, args=None, *, key=None) -> Estimate`, for one example.

    It carries the process whose noise it removes, and says how its errors are measured (`parameterisation`) and how a
    reverse step's variance is found (`variance`).
    """

    process: eqx.AbstractVar[AbstractProcess]
    parameterisation: eqx.AbstractVar[AbstractParameterisation]
    variance: eqx.AbstractVar[AbstractVariance]

    @abc.abstractmethod
    def __call__(
        self, t: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Estimate:
        r"""Estimates $x_0$ and ε from $x = x_t$.

        **Arguments:**

        - `t`: the time: an index for a chain, a real number for an SDE.
        - `x`: one noisy example, of any shape.
        - `args`: what conditions the network; `None` if nothing does.
        - `key`: for dropout; without one there is none.
        """


class Denoiser(AbstractDenoiser):
    r"""A network with a meaning.

    The network is called as `net(label, c_in * x, args, key=key)`; its output is read by the parameterisation. Where the
    variance is learned, the network returns twice as many channels, the second half being the raw variance.
    """

    net: Network
    process: AbstractProcess
    parameterisation: AbstractParameterisation
    variance: AbstractVariance
    label: Callable[[Scalar], Scalar] | None

    def __init__(
        self,
        net: Network,
        process: AbstractProcess,
        parameterisation: AbstractParameterisation = PredictNoise(),
        *,
        variance: AbstractVariance = FixedLarge(),
        label: Callable[[Scalar], Scalar] | None = None,
    ):
        r"""**Arguments:**

        - `net`: the network, `(label, x, args, *, key) -> F`; any callable.
        - `process`: whose noise it removes: an SDE, a [`eqdiff.Schedule`][] or its continuous view.
        - `parameterisation`: what the output means.
        - `variance`: of a reverse step on a discrete chain; elsewhere it only says whether the network has variance
            outputs.
        - `label`: what the network is told as time, as a function of $t$; the process's own by default ($1000\,t/T$ for a
            chain, $999\,t$ for VP, $\log\sigma$ for VE).
        """
        self.net, self.process, self.parameterisation = net, process, parameterisation
        self.variance, self.label = variance, label

    def __call__(
        self, t: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Estimate:
        check_example("The denoiser", x)
        check_time(self.process, t)
        label = self.process.label(t) if self.label is None else self.label(jnp.asarray(t))
        scale = self.parameterisation.c_in(self.process, t).astype(x.dtype)
        output = self.net(label.astype(x.dtype), scale * x, args, key=key)
        output, raw = self._split(output, x)
        x0, noise = self.parameterisation.estimate(self.process, t, x, output)
        return Estimate(x0, noise, raw)

    def _split(self, output: Example, x: Example) -> tuple[Example, Example | None]:
        factor = 2 if self.variance.learned else 1
        if self.variance.learned and x.ndim == 0:
            raise ValueError(
                f"variance={type(self.variance).__name__}() needs a channel axis to double, but x is a number: "
                "write x[None]."
            )
        expected = (factor * x.shape[0], *x.shape[1:]) if x.ndim else ()
        if output.shape != expected:
            remedy = (
                "a network with a learned variance returns twice its input's channels"
                if self.variance.learned
                else "if its second half is a learned variance, write variance=eqdiff.LearnedRange()"
            )
            raise ValueError(
                f"The network returned shape {output.shape} for an input of shape {x.shape}, expected {expected} with "
                f"variance={type(self.variance).__name__}(): {remedy}."
            )
        # Solvers and losses work in the precision of x, whatever the network computes in.
        output = output.astype(x.dtype)
        if not self.variance.learned:
            return output, None
        return output[: x.shape[0]], output[x.shape[0] :]


def check_example(owner: str, x: Example) -> None:
    """Raises `ValueError` for an example of whole numbers: pixels, where normalised data belong."""
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        raise ValueError(
            f"{owner} works on floating-point data, images on [-1, 1], but was given {jnp.result_type(x)} of shape "
            f"{jnp.shape(x)}. For 8-bit pixels write x / 127.5 - 1, or eqdiff.data's Dataset.normalise."
        )


def check_time(process: AbstractProcess, t: Time) -> None:
    """Raises `ValueError` for a time that is known and out of range. A traced one is not looked at: it costs nothing."""
    if isinstance(process, Schedule):
        low, high, remedy = (
            0,
            process.num_steps - 1,
            f"times of a chain are 0 to T - 1; T = {process.num_steps}",
        )
    elif isinstance(process, AbstractSDE):
        low, high, remedy = (
            process.t0,
            process.t1,
            "the process is used on [t0, t1], set where it is made",
        )
    else:
        return
    if is_traced(t, low, high):
        return
    value, low, high = (np.asarray(value, np.float64) for value in (t, low, high))
    # A time on the edge may have been rounded to float32.
    slack = 1e-6 * (high - low)
    if not np.all((value >= low - slack) & (value <= high + slack)):
        raise ValueError(
            f"t = {value} is outside [{low:g}, {high:g}] of {type(process).__name__}: {remedy}."
        )


def score(denoiser: AbstractDenoiser, t: Time, x: Example, args: Args = None) -> Example:
    r"""The score $\nabla_x\log p_t(x) = -\hat\varepsilon/\sigma_t$."""
    return -denoiser(t, x, args).noise / denoiser.process.sigma(t).astype(x.dtype)
