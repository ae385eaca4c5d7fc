r"""The discrete schedule of DDPM, as a process in continuous time.

A schedule is its rates $\beta_0, \dots, \beta_{T-1}$ (time is 0-based: $t = 0$ is one noising
step). With $\bar\alpha_t = \prod_{s \le t} (1 - \beta_s)$ and $\bar\alpha_{-1} = 1$,

$$q(x_t \mid x_0) = \mathcal N(\sqrt{\bar\alpha_t}\, x_0,\ (1 - \bar\alpha_t) I), \tag{1}$$

$$q(x_{t-1} \mid x_t, x_0) = \mathcal N(\tilde\mu_t, \tilde\beta_t I), \qquad
  \tilde\beta_t = \frac{1 - \bar\alpha_{t-1}}{1 - \bar\alpha_t}\beta_t, \tag{2}$$

$$\tilde\mu_t = \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1 - \bar\alpha_t} x_0
  + \frac{\sqrt{1 - \beta_t}\,(1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t} x_t \tag{3}$$

(Nichol & Dhariwal 2021, equations 8–12). All tables are float64 NumPy, computed once, and cast once
where they are used: $\log(1 - \bar\alpha)$ and the cumulative product in float32 would lose the
first steps, which carry most of the bound.

Between whole times the log-SNR $\lambda_t = \log\bar\alpha_t - \log(1 - \bar\alpha_t)$ is a smooth
monotone curve through all of them, which makes (1) a variance-preserving process in continuous
time,

$$\alpha_t^2 = \operatorname{sigmoid}(\lambda_t), \qquad
  \sigma_t^2 = \operatorname{sigmoid}(-\lambda_t), \qquad
  \dot\alpha = \tfrac12\alpha\sigma^2\dot\lambda, \qquad
    \dot\sigma = -\tfrac12\sigma\alpha^2\dot\lambda. \tag{4}$$

So a network trained on whole times has a probability flow, a reverse SDE and an exact likelihood.

The last rate may be 1, and then $\bar\alpha_{T-1} = 0$: *zero terminal SNR*, `zero_snr.py`. On the
last interval $\lambda_{T-2+u} = \lambda_{T-2} + c\,u + 2\log(1 - u)$, with the slope that the curve
before it has at $T - 2$: α falls to 0 almost in a straight line, and $\dot\alpha$ is finite there.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from .._types import Example, Scalar, Time
from ._interpolant import cubic_slope, cubics, evaluate, halves, left_of, rise, slope
from ._table import Table
from .base import AbstractProcess, as_time


# The official clip of β: it keeps the last step of the cosine schedule from erasing everything.
MAX_BETA = 0.999


def is_whole(t: Time | Shaped[Array, "..."]) -> bool:
    """Whether times are of an integer type: steps of a schedule."""
    return jnp.issubdtype(jnp.result_type(t), jnp.integer)


class Schedule(AbstractProcess):
    r"""The schedule $q(x_t|x_{t-1}) = \mathcal N(\sqrt{1-\beta_t}\,x_{t-1}, \beta_t I)$,
    $t = 0, \dots, T-1$.

    As a process it has $\alpha_t = \sqrt{\bar\alpha_t}$ and $\sigma_t = \sqrt{1-\bar\alpha_t}$. The
    *type* of a time decides how it is looked up. Whole times (of an integer type) are the steps:
    they read float64 tables, and give NaN outside $0, \dots, T-1$. Floating-point times lie between
    the steps and read a smooth monotone interpolation of λ and $c_\text{noise}$. At 3 and at 3.0
    the results agree to rounding.

    Solves run from `t0` = 0 to `t1` = $T - 1$; or $T - 2$ where the last rate was clipped (the
    cosine schedule's: there $\alpha \approx 5\cdot10^{-5}$, and a coarse grid would spend its steps
    on that one) or is 1, so that $\lambda = -\infty$. Whole times are valid up to $T - 1$ all the
    same.

    The tables are static (hashed by content): they are never traced, differentiated, averaged or
    decayed, and stay float64 whatever the precision of the computation.

    **Example:**

    ```python
    import numpy as np

    schedule = eqd.Schedule(np.linspace(1e-3, 0.2, 100))  # your own rates
    ```

    ??? cite "Reference"

        Ho et al., *Denoising Diffusion Probabilistic Models*, NeurIPS 2020; Nichol & Dhariwal,
        *Improved Denoising Diffusion Probabilistic Models*, ICML 2021.
    """

    _betas: Table = eqx.field(static=True)
    _c_noises: Table = eqx.field(static=True)
    _timesteps: Table = eqx.field(static=True)

    def __init__(
        self,
        betas: Float[np.ndarray, " T"],
        *,
        c_noise: Shaped[np.ndarray, " T"] | None = None,
        timesteps: Int[np.ndarray, " T"] | None = None,
    ):
        r"""**Arguments:**

        - `betas`: the rates $\beta_t$, each in $(0, 1)$; the last may be 1 (see
            [`eqdiff.zero_terminal_snr`][]).
        - `c_noise`: the network's time input at each step; by default $1000\,t/T$ (the official
            `rescale_timesteps=True`). For a network trained without rescaling pass
            `c_noise=np.arange(T)`.
        - `timesteps`: the index of each step in the schedule that this one was respaced from; by
            default $0, \dots, T-1$.

        **Raises:** `ValueError` for rates outside these ranges, or tables of unequal length.
        """
        betas = np.asarray(betas, np.float64)
        if betas.ndim != 1 or betas.size == 0:
            raise ValueError(f"Schedule: expected a vector of rates, got shape {betas.shape}.")
        last = np.arange(betas.size) == betas.size - 1
        bad = np.flatnonzero(~((betas > 0) & ((betas < 1) | (last & (betas == 1)))))
        if bad.size:
            raise ValueError(
                "Schedule: every rate must lie in (0, 1), and the last in (0, 1], but "
                f"betas[{bad[0]}] = {betas[bad[0]]:g} ({bad.size} of {betas.size} are outside). A "
                "linear schedule needs at least 20 steps."
            )
        steps = np.arange(betas.size)
        c_noise = steps * (1000 / betas.size) if c_noise is None else np.asarray(c_noise, float)
        timesteps = steps if timesteps is None else np.asarray(timesteps)
        for name, table in (("c_noise", c_noise), ("timesteps", timesteps)):
            if table.shape != betas.shape:
                raise ValueError(
                    f"Schedule: {name} has shape {table.shape}, expected one per rate, "
                    f"{betas.shape}."
                )
        self._betas, self._c_noises = Table(betas), Table(c_noise)
        self._timesteps = Table(timesteps)

    @property
    def num_steps(self) -> int:
        """The number of steps $T$."""
        return self.betas.size

    @property
    def t0(self) -> float:
        """Where solves end: 0."""
        return 0.0

    @property
    def t1(self) -> float:
        """Where solves begin: $T - 1$, or $T - 2$ where the last rate was clipped or is 1."""
        clipped = self.num_steps > 2 and self.betas[-1] >= MAX_BETA
        return float(max(self.num_steps - 1 - (clipped or self.ends_without_signal), 0))

    @property
    def ends_without_signal(self) -> bool:
        r"""Whether the last rate is 1, so that $\alpha_{T-1} = 0$: zero terminal SNR."""
        return bool(self.betas[-1] == 1)

    @property
    def betas(self) -> Float[np.ndarray, " T"]:
        r"""$\beta_t$, float64."""
        return self._betas.array

    @property
    def c_noises(self) -> Float[np.ndarray, " T"]:
        """The network's time input at each step, float64."""
        return self._c_noises.array

    @property
    def timesteps(self) -> Int[np.ndarray, " T"]:
        """The index of each step in the schedule that this one was respaced from."""
        return self._timesteps.array

    @property
    def alpha_bar(self) -> Float[np.ndarray, " T"]:
        r"""$\bar\alpha_t = \prod_{s\le t}(1-\beta_s)$, float64."""
        return self._betas.derived(_alpha_bar)

    @property
    def alpha_bar_previous(self) -> Float[np.ndarray, " T"]:
        r"""$\bar\alpha_{t-1}$, with $\bar\alpha_{-1} = 1$, float64."""
        return self._betas.derived(_alpha_bar_previous)

    @property
    def log_snrs(self) -> Float[np.ndarray, " T"]:
        r"""$\lambda_t = \log\bar\alpha_t - \log(1 - \bar\alpha_t)$, float64; $-\infty$ where
        $\bar\alpha_t = 0$.
        """
        return self._betas.derived(_log_snrs)

    @property
    def posterior_variance(self) -> Float[np.ndarray, " T"]:
        r"""$\tilde\beta_t$ of equation (2): 0 at $t = 0$. float64."""
        return self._betas.derived(_posterior_variance)

    @property
    def posterior_log_variance(self) -> Float[np.ndarray, " T"]:
        r"""$\log\tilde\beta_t$, its first entry (which is $-\infty$) replaced by the second,
        float64.
        """
        return self._betas.derived(_posterior_log_variance)

    def lookup(self, table: Shaped[np.ndarray, " T"], t: Time) -> Scalar:
        r"""One entry of a float64 table in the default precision; NaN outside $0, \dots, T-1$.

        **Raises:** `ValueError` for a time that is not whole.
        """
        return _at(jnp.asarray(table, float), _index(t))

    def alpha(self, t: Time) -> Scalar:
        if is_whole(t):
            return self.lookup(np.sqrt(self.alpha_bar), t)
        return jnp.exp(0.5 * jax.nn.log_sigmoid(self._log_snr(t)))

    def sigma(self, t: Time) -> Scalar:
        if is_whole(t):
            return self.lookup(np.sqrt(1 - self.alpha_bar), t)
        return jnp.exp(0.5 * jax.nn.log_sigmoid(-self._log_snr(t)))

    def alpha_dot(self, t: Time) -> Scalar:
        return 0.5 * self._alpha_log_snr_dot(t) * self.sigma(t) ** 2

    def sigma_dot(self, t: Time) -> Scalar:
        return -0.5 * self._alpha_log_snr_dot(t) * self.sigma(t) * self.alpha(t)

    def log_snr_fall(self, s: Time, t: Time) -> Scalar:
        fall = self._log_snr_fall(s, t)
        # Not −∞ less itself.
        return jnp.where(s == t, 0, fall) if self.ends_without_signal else fall

    def _log_snr_fall(self, s: Time, t: Time) -> Scalar:
        if is_whole(s) and is_whole(t):
            high, low = halves(self.log_snrs, jnp.result_type(float))
            s, t = _index(s), _index(t)
            return (_at(high, s) - _at(high, t)) + (_at(low, s) - _at(low, t))
        s, t = as_time(s), as_time(t)
        forward = s <= t
        (i, u, c), (j, v, d) = (
            _piece(self._betas, jnp.where(forward, *pair)) for pair in ((s, t), (t, s))
        )
        # From the earlier time to the next step, from step to step, and from a step to the later
        # time: three falls of one sign, each without a difference of rounded λ.
        inside = i == j
        first = rise(u, jnp.where(inside, v, 1), c)
        high, low = halves(self._betas.derived(_knots), t.dtype)
        k = jnp.minimum(i + 1, j)
        between = (_at(high, k) - _at(high, j)) + (_at(low, k) - _at(low, j))
        last = jnp.where(inside, 0, rise(jnp.zeros_like(v), v, d))
        fall = between - first - last
        return jnp.where(forward, fall, -fall)

    def c_noise(self, t: Time) -> Scalar:
        if is_whole(t):
            return self.lookup(self.c_noises, t)
        _, u, c = _piece(self._c_noises, t, cubics)
        return c[0] + evaluate(u, c)

    def prior_scale(self) -> Scalar:
        return jnp.ones(())

    def posterior_mean(self, t: Time, x0: Example, x: Example) -> Example:
        r"""$\tilde\mu_t(x_t, x_0)$ of equation (3), at a whole time."""
        on_x0, on_x = self.posterior_mean_coefficients(t)
        return on_x0.astype(x.dtype) * x0 + on_x.astype(x.dtype) * x

    def posterior_mean_coefficients(self, t: Time) -> tuple[Scalar, Scalar]:
        r"""The coefficients of $x_0$ and of $x_t$ in equation (3), at a whole time."""
        on_x0, on_x = self._betas.derived(_posterior_mean_coefficients)
        return self.lookup(on_x0, t), self.lookup(on_x, t)

    def _log_snr(self, t: Time) -> Scalar:
        _, u, c = _piece(self._betas, t)
        return c[0] + evaluate(u, c)

    def _log_snr_dot(self, t: Time) -> Scalar:
        _, u, c = _piece(self._betas, t)
        return slope(u, c)

    def _alpha_log_snr_dot(self, t: Time) -> Scalar:
        r"""$\alpha\dot\lambda$, finite also where $\alpha = 0$."""
        _, u, c = _piece(self._betas, t)
        product = slope(u, c) * self.alpha(t)
        if not self.ends_without_signal:
            return product
        # On the last interval α is divided by 1 − u, and the slope multiplied.
        without = c[0] + rise(jnp.zeros_like(u), u, c.at[4].set(0))
        alpha = jnp.exp(0.5 * (without - jax.nn.softplus(c[0] + evaluate(u, c))))
        return jnp.where(c[4] == 0, product, (left_of(u, c) * cubic_slope(u, c) - 2) * alpha)

    def time(self, log_snr: Scalar) -> Scalar:
        # Bisection has no derivative, so it is given that of the inverse function, 1/λ̇.
        @jax.custom_jvp
        def inverse(value):
            return self._bisect(value)

        @inverse.defjvp
        def _(primals, tangents):
            t = inverse(*primals)
            return t, tangents[0] / self._log_snr_dot(t)

        return inverse(log_snr)

    def _bisect(self, log_snr: Scalar) -> Scalar:
        table = jnp.asarray(self.log_snrs, log_snr.dtype)
        # λ decreases, so −λ is sorted. Within its interval the curve is monotone: bisection cannot
        # fail, and its number of halvings is set by the precision.
        i = jnp.clip(jnp.searchsorted(-table, -log_snr, side="right") - 1, 0, table.size - 2)
        low = i.astype(log_snr.dtype)

        def halve(_, bracket):
            left, right = bracket
            middle = 0.5 * (left + right)
            above = self._log_snr(middle) > log_snr
            return jnp.where(above, middle, left), jnp.where(above, right, middle)

        halvings = jnp.finfo(log_snr.dtype).nmant + 1
        left, right = jax.lax.fori_loop(0, halvings, halve, (low, low + 1))
        return 0.5 * (left + right)


def _index(t: Time) -> Int[Array, ""]:
    if not is_whole(t):
        raise ValueError(
            "This is defined at the whole times of a schedule, but the time is "
            f"{jnp.result_type(t)}: floating-point times lie between the steps. For the nearest "
            "step write jnp.rint(t).astype(int)."
        )
    return jnp.asarray(t).astype(int)


def _at(table: Float[Array, " T"], index: Int[Array, ""]) -> Scalar:
    # Indexing would count negative ones from the end, and take others for the last.
    index = jnp.where(index < 0, table.size, index)
    return table.at[index].get(mode="fill", fill_value=jnp.nan)


def _piece(table: Table, t: Time, of=None) -> tuple[Int[Array, ""], Scalar, Float[Array, "5"]]:
    """The interval of t, the place of t within it, and the interval's coefficients."""
    t = as_time(t)
    pieces = table.derived(_log_snr_cubics if of is None else of)
    # NaN where a solve or a strategy left the schedule by more than rounding.
    end = len(pieces) * (1 + 1e-6)
    t = jnp.where((t >= -1e-6 * end) & (t <= end), t, jnp.nan)
    i = jnp.clip(jnp.floor(jnp.where(jnp.isnan(t), 0, t)), 0, len(pieces) - 1)
    index = i.astype(jnp.int32)
    return index, t - i, jnp.asarray(pieces, t.dtype)[index]


def _alpha_bar(betas):
    return np.cumprod(1 - betas)


def _alpha_bar_previous(betas):
    return np.append(1.0, _alpha_bar(betas)[:-1])


def _log_snrs(betas):
    alpha_bar = _alpha_bar(betas)
    with np.errstate(divide="ignore"):
        return np.log(alpha_bar) - np.log1p(-alpha_bar)


def _knots(betas):
    return _log_snr_cubics(betas)[:, 0]


def _log_snr_cubics(betas):
    log_snrs = _log_snrs(betas)
    ends = betas[-1] == 1
    clipped = betas.size > 4 and betas[-1] >= MAX_BETA
    if not clipped and not (ends and betas.size > 1):
        return cubics(log_snrs)
    # The last step is a leap: it must not bend the curve before it.
    smooth = cubics(log_snrs[:-1])
    _, c1, c2, c3, _ = smooth[-1]
    start, fall, slope_there = log_snrs[-2], log_snrs[-1] - log_snrs[-2], c1 + 2 * c2 + 3 * c3
    if ends:
        # 2 log(1 − u) has the slope −2 at its start, which is that of a straight α.
        leap = [start, slope_there + 2 if betas.size > 2 else 0.0, 0.0, 0.0, 1.0]
    else:
        # A parabola from the slope at T − 2, as steep at least.
        leap = [start, slope_there, fall - slope_there, 0.0, 0.0]
    return np.concatenate([smooth if betas.size > 2 else smooth[:0], [leap]])


def _posterior_variance(betas):
    return betas * (1 - _alpha_bar_previous(betas)) / (1 - _alpha_bar(betas))


def _posterior_log_variance(betas):
    variance = _posterior_variance(betas)
    # The first is 0 because x_0 is known given x_0. The official code gives it the second entry; a
    # schedule of one step has none, and its own β is then the only variance there is.
    variance[0] = variance[1] if variance.size > 1 else betas[0]
    return np.log(variance)


def _posterior_mean_coefficients(betas):
    alpha_bar, previous = _alpha_bar(betas), _alpha_bar_previous(betas)
    on_x0 = betas * np.sqrt(previous) / (1 - alpha_bar)
    on_x = (1 - previous) * np.sqrt(1 - betas) / (1 - alpha_bar)
    return on_x0, on_x
