r"""The one interface.

From $x_t = \alpha_t x_0 + \sigma_t\varepsilon$ a denoiser estimates the data and the noise,

$$\hat x_0 \approx \mathbb E[x_0 | x_t], \qquad
  \hat\varepsilon \approx \mathbb E[\varepsilon | x_t], \qquad
  x_t = \alpha_t\hat x_0 + \sigma_t\hat\varepsilon, \qquad
    \nabla\log p_t(x_t) = -\hat\varepsilon / \sigma_t. \tag{1}$$

Everything else — samplers, losses, likelihoods — takes any denoiser. Guidance and thresholding are
denoisers that wrap one: moving $\hat x_0$ by δ moves $\hat\varepsilon$ by $-(\alpha/\sigma)\delta$.
"""

import abc
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ._check import check_example
from ._parameterisation import AbstractParameterisation, check_readable, PredictNoise
from ._process import AbstractProcess, check_time
from ._types import Args, Example, Key, Network, Scalar, Time
from ._variance import AbstractVariance, FixedLarge


class Estimate(eqx.Module):
    r"""What a denoiser returns: $\hat x_0$, $\hat\varepsilon$ and the raw variance outputs of the
    same call.

    - `x0`, `noise`: the estimates, shaped like $x$.
    - `raw_variance`: the network's extra outputs, shaped like $x$, or `None` if no variance is
        learned.

    **Example:**

    ```python
    estimate = eqd.GaussianDenoiser(eqd.VPSDE())(0.5, jnp.ones(3))  # an eqd.Estimate
    x0, noise = estimate.x0, estimate.noise
    ```
    """

    x0: Example
    noise: Example
    raw_variance: Example | None = None

    def move(self, delta: Example, alpha: Scalar, sigma: Scalar) -> "Estimate":
        r"""$\hat x_0 + \delta$ and $\hat\varepsilon - (\alpha/\sigma)\delta$: invariant (1) kept to
        full precision.
        """
        ratio = (alpha / sigma).astype(delta.dtype)
        return Estimate(self.x0 + delta, self.noise - ratio * delta, self.raw_variance)


class AbstractDenoiser(eqx.Module):
    r"""`denoiser(t, x, args=None, *, key=None) -> Estimate`, for one example.

    It holds the process whose noise it removes, the `parameterisation` in which its errors are
    measured, and the `variance` of a reverse step.
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

        - `t`: the time: a real number, or a step of a schedule (of an integer type).
        - `x`: one noisy example, of any shape.
        - `args`: the network's conditioning, or `None`.
        - `key`: for dropout; without a key nothing is dropped.
        """


class AbstractWrapper(AbstractDenoiser):
    """A denoiser that wraps another and shares its process, parameterisation and variance.

    To write one, keep the wrapped denoiser as `denoiser` and change its estimate in `__call__`, by
    `moved` where possible.
    """

    denoiser: eqx.AbstractVar[AbstractDenoiser]

    @property
    def process(self) -> AbstractProcess:
        """The process of the wrapped denoiser."""
        return self.denoiser.process

    @property
    def parameterisation(self) -> AbstractParameterisation:
        """The parameterisation of the wrapped denoiser."""
        return self.denoiser.parameterisation

    @property
    def variance(self) -> AbstractVariance:
        """The variance of the wrapped denoiser."""
        return self.denoiser.variance

    def moved(self, estimate: Estimate, t: Time, delta: Example) -> Estimate:
        r"""The estimate with $\hat x_0$ moved by δ, and $\hat\varepsilon$ by
        $-(\alpha_t/\sigma_t)\delta$.
        """
        return estimate.move(delta, self.process.alpha(t), self.process.sigma(t))


# The network's time input as a function of the process and the time.
CNoise = Callable[[AbstractProcess, Time], Scalar]


def time_input(
    process: AbstractProcess, c_noise: CNoise | None, t: Time, *, like: Example
) -> Scalar:
    """$c_\text{noise}$ for an example, never in half precision, where steps 998 and 999 would be
    one.
    """
    value = process.c_noise(t) if c_noise is None else jnp.asarray(c_noise(process, t))
    # Not promote_types, which strict promotion refuses.
    return value.astype(like.dtype if jnp.finfo(like.dtype).bits >= 32 else jnp.float32)


class Denoiser(AbstractDenoiser):
    r"""A denoiser made of a network, a process and the meaning of the output.

    The network is called as `net(c_noise, c_in * x, args, key=key)`; its output is read by the
    parameterisation. Where the variance is learned, the network returns twice as many channels, the
    second half being the raw variance. `c_noise` is float32 even where `x` is in half precision.

    **Example:**

    ```python
    net = eqd.nn.MLP(2, 2, key=jax.random.key(0))
    denoiser = eqd.Denoiser(net, eqd.RectifiedFlow(), eqd.PredictFlow())
    x0 = denoiser(0.5, jnp.ones(2)).x0
    ```
    """

    net: Network
    process: AbstractProcess
    parameterisation: AbstractParameterisation
    variance: AbstractVariance
    c_noise: CNoise | None

    def __init__(
        self,
        net: Network,
        process: AbstractProcess,
        parameterisation: AbstractParameterisation = PredictNoise(),
        *,
        variance: AbstractVariance = FixedLarge(),
        c_noise: CNoise | None = None,
    ):
        r"""**Arguments:**

        - `net`: the network, `(c_noise, x, args, *, key) -> F`; any callable.
        - `process`: the process whose noise it removes.
        - `parameterisation`: what the output means.
        - `variance`: of a reverse step on a schedule; elsewhere it only says whether the network
            has variance outputs.
        - `c_noise`: the network's time input as a function of the process and $t$; by default the
            process's own ($1000\,t/T$ for a schedule, $999\,t$ for VP, $\log\sigma$ for VE).

        **Raises:** `ValueError` for [`eqdiff.PredictNoise`][] or [`eqdiff.PredictScore`][] on a
        schedule of zero terminal SNR.
        """
        check_readable(parameterisation, process)
        self.net, self.process, self.parameterisation = net, process, parameterisation
        self.variance, self.c_noise = variance, c_noise

    def __call__(
        self, t: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Estimate:
        check_example("The denoiser", x)
        check_time(self.process, t)
        check_readable(self.parameterisation, self.process)
        c_noise = time_input(self.process, self.c_noise, t, like=x)
        c_in = self.parameterisation.c_in(self.process, t).astype(x.dtype)
        output = self.net(c_noise, c_in * x, args, key=key)
        output, raw = self._split(output, x)
        x0, noise = self.parameterisation.estimate(self.process, t, x, output)
        return Estimate(x0, noise, raw)

    def _split(self, output: Example, x: Example) -> tuple[Example, Example | None]:
        factor = 2 if self.variance.learned else 1
        if self.variance.learned and x.ndim == 0:
            raise ValueError(
                f"variance={type(self.variance).__name__}() needs a channel axis to double, but x "
                "is a number: write x[None]."
            )
        expected = (factor * x.shape[0], *x.shape[1:]) if x.ndim else ()
        if output.shape != expected:
            remedy = (
                "a network with a learned variance returns twice its input's channels"
                if self.variance.learned
                else "if half of it is a learned variance, write variance=eqdiff.LearnedRange()"
            )
            raise ValueError(
                f"The network returned shape {output.shape} for an input of shape {x.shape}, "
                f"expected {expected} with variance={type(self.variance).__name__}(): {remedy}."
            )
        # Solvers and losses work in the precision of x, whatever the network computes in.
        output = output.astype(x.dtype)
        if not self.variance.learned:
            return output, None
        return output[: x.shape[0]], output[x.shape[0] :]


def score(denoiser: AbstractDenoiser, t: Time, x: Example, args: Args = None) -> Example:
    r"""The score $\nabla_x\log p_t(x) = -\hat\varepsilon/\sigma_t$.

    **Example:**

    ```python
    s = eqd.score(eqd.GaussianDenoiser(eqd.VPSDE()), 0.5, jnp.ones(3))  # -1 each
    ```
    """
    return -denoiser(t, x, args).noise / denoiser.process.sigma(t).astype(x.dtype)


D = TypeVar("D")


def on(denoiser: D, process: AbstractProcess) -> D:
    """The same denoiser on another process, with all its parts: guidance, classifiers, what they
    wrap.

    For a respaced schedule, or another interval: `on(denoiser, respace(denoiser.process, steps))`.
    The network stays, and so does the meaning of its output; eqdiff cannot check whether it was
    trained for the other process's levels and time inputs.

    **Arguments:**

    - `denoiser`: a denoiser, wrapped or not, or anything that holds processes.
    - `process`: the process that takes the place of each.

    **Example:**

    ```python
    schedule = eqd.cosine_schedule(1000)
    denoiser = eqd.GaussianDenoiser(schedule)
    shorter = eqd.on(denoiser, eqd.respace(schedule, eqd.ddim_timesteps(1000, 50)))
    ```
    """

    def is_process(leaf: Any) -> bool:
        return isinstance(leaf, AbstractProcess)

    def replace(leaf: Any) -> Any:
        return process if is_process(leaf) else leaf

    return jax.tree.map(replace, denoiser, is_leaf=is_process)
