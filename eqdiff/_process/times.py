r"""Which times a sampler visits, and where a training time lies.

A *spacing* is any function `(process, num_steps) -> times` that returns decreasing times, noise
first: a sampler takes one as `spacing=`, or the times themselves as `times=`. The functions here
space them evenly in some quantity, from the process's noisiest time to its cleanest: in $t$ itself
(`uniform`; `trailing` without the cleanest), in $\sqrt t$ (`quadratic`; Song, Meng & Ermon 2021),
in the log-SNR λ (Lu et al. 2022), or in a power of the noise level $s = \sigma/\alpha$ (Karras et
al. 2022, equation 5),

$$s_i = \left(s_{\max}^{1/\rho}
    + \tfrac{i}{n-1}\left(s_{\min}^{1/\rho} - s_{\max}^{1/\rho}\right)\right)^{\rho}, \qquad
  \lambda_i = -2\log s_i, \tag{1}$$

or visit the levels of a schedule (Karras et al. 2022, table 1: the "iDDPM" discretisation). A level
becomes a time by the process's `time(log_snr)`. On a schedule uniform times are whole, as in the
official code; the other spacings lie between $t_0$ and $t_1$ usually between the steps.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from .._check import check_positive, known_number, whole
from .._types import Scalar
from .base import AbstractProcess, has_no_signal, without_signal
from .edm import EDMSDE
from .named import cosine_schedule
from .schedule import Schedule
from .spacing import section_timesteps


def time_at(process: AbstractProcess, u: Float[Array, "..."]) -> Shaped[Array, "..."]:
    r"""The time of $u \in [0, 1)$, uniformly: a step of a schedule, else $t_0 + (t_1 - t_0)u$."""
    if isinstance(process, Schedule):
        # Rounding may carry u·T up to T for u just below 1.
        return jnp.minimum((u * process.num_steps).astype(jnp.int32), process.num_steps - 1)
    return process.t0 + (process.t1 - process.t0) * u


def default_times(process: AbstractProcess, num_steps: int) -> Shaped[Array, " num_steps"]:
    """`uniform_times`, but `karras_times` for EDM's process, whose time is the noise level itself:
    of 50 levels evenly spaced up to 80 two would be of the size of the data.
    """
    spacing = karras_times if isinstance(process, EDMSDE) else uniform_times
    return spacing(process, num_steps)


def uniform_times(process: AbstractProcess, num_steps: int) -> Shaped[Array, " num_steps"]:
    r"""`num_steps` decreasing times, evenly spaced in $t$: what samplers use by default on every
    process but [`eqdiff.EDMSDE`][].

    On a schedule they are its steps from $T-1$ to 0, rounded as in the official code.

    **Arguments:**

    - `process`: any process.
    - `num_steps`: how many times, both ends of the process included.

    **Raises:** `ValueError` for less than one step, or more than a schedule has.

    **Example:**

    ```python
    times = eqd.uniform_times(eqd.cosine_schedule(1000), 3)  # 999, 500, 0
    ```
    """
    num_steps = whole("uniform_times", "num_steps", num_steps)
    if not isinstance(process, Schedule):
        return jnp.linspace(process.t1, process.t0, num_steps)
    _check_steps("uniform_times", process, num_steps)
    steps = section_timesteps(process.num_steps, (num_steps,))
    return jnp.asarray(steps[::-1].copy(), jnp.int32)


def trailing_times(process: AbstractProcess, num_steps: int) -> Shaped[Array, " num_steps"]:
    r"""`num_steps` decreasing times, evenly spaced in $t$ from the noisiest down, without the
    cleanest.

    Of $n$ steps of a schedule they are $\operatorname{round}(T - iT/n) - 1$, $i = 0, \dots, n - 1$:
    diffusers' `timestep_spacing="trailing"`. Elsewhere $t_1 - i\,(t_1 - t_0)/n$.

    Arguments and errors as for [`eqdiff.uniform_times`][].

    **Example:**

    ```python
    times = eqd.trailing_times(eqd.linear_schedule(1000), 4)  # 999, 749, 499, 249
    ```

    ??? cite "Reference"

        Lin, Liu, Li & Yang, *Common Diffusion Noise Schedules and Sample Steps are Flawed*, WACV
        2024, section 3.3.
    """
    num_steps = whole("trailing_times", "num_steps", num_steps)
    if not isinstance(process, Schedule):
        return jnp.linspace(process.t1, process.t0, num_steps + 1)[:-1]
    _check_steps("trailing_times", process, num_steps)
    steps = np.rint(process.num_steps * (1 - np.arange(num_steps) / num_steps)) - 1
    return jnp.asarray(steps, jnp.int32)


def quadratic_times(process: AbstractProcess, num_steps: int) -> Float[Array, " num_steps"]:
    r"""`num_steps` decreasing times, evenly spaced in $\sqrt t$: more of them near the data.

    The official code stops at 80 % of a schedule and rounds; here both ends are included. Arguments
    and errors as for [`eqdiff.uniform_times`][].

    **Example:**

    ```python
    times = eqd.quadratic_times(eqd.VPSDE(), 5)  # 1, 0.56, 0.25, 0.06, 1e-5
    ```

    ??? cite "Reference"

        Song, Meng & Ermon, *Denoising Diffusion Implicit Models*, ICLR 2021, appendix D.2.
    """
    num_steps = whole("quadratic_times", "num_steps", num_steps)
    t0, t1 = _ends(process)
    root = jnp.sqrt(t1) + _fraction(num_steps) * (jnp.sqrt(t0) - jnp.sqrt(t1))
    return _with_ends(root**2, t1, t0)


def log_snr_times(process: AbstractProcess, num_steps: int) -> Float[Array, " num_steps"]:
    r"""`num_steps` decreasing times, evenly spaced in $\lambda_t = \log(\alpha_t^2/\sigma_t^2)$.

    The same as [`eqdiff.karras_times`][] for $\rho \to \infty$. Arguments and errors as for
    [`eqdiff.uniform_times`][].

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    x0 = eqd.DDIM(10, spacing=eqd.log_snr_times)(denoiser, jnp.ones(3))
    ```

    ??? cite "Reference"

        Lu et al., *DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in
        Around 10 Steps*, NeurIPS 2022, section 3.3.
    """
    num_steps = whole("log_snr_times", "num_steps", num_steps)
    _check_level("log_snr_times", process)
    t0, t1 = _ends(process)
    first, last = process.log_snr(t1), process.log_snr(t0)
    times = _at_levels(process, first + _fraction(num_steps) * (last - first))
    return _with_ends(times, t1, t0)


def karras_times(
    process: AbstractProcess,
    num_steps: int,
    rho: float = 7.0,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Float[Array, " num_steps"]:
    r"""`num_steps` decreasing times with $(\sigma/\alpha)^{1/\rho}$ evenly spaced, equation (1).

    **Arguments:**

    - `process`: any process.
    - `num_steps`: how many times.
    - `rho`: ρ; 7 crowds them near the data, 1 is uniform in $\sigma/\alpha$.
    - `sigma_min`, `sigma_max`: the levels $\sigma/\alpha$ of the last and the first time; by
        default those of the process's own ends.

    **Raises:** `ValueError` for less than one step, ρ ≤ 0, or levels that do not decrease.

    **Example:**

    ```python
    times = eqd.karras_times(eqd.EDMSDE(), 18)  # the paper's 18 levels from 80 to 0.002
    ```

    ??? cite "Reference"

        Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*, NeurIPS
        2022, equation 5.
    """
    num_steps = whole("karras_times", "num_steps", num_steps)
    check_positive("karras_times", rho=rho)
    low, high = _range("karras_times", process, sigma_min, sigma_max)
    first, last = high ** (1 / rho), low ** (1 / rho)
    level = (first + _fraction(num_steps) * (last - first)) ** rho
    times = _at_levels(process, -2 * jnp.log(level))
    t0, t1 = _ends(process)
    return _with_ends(
        times,
        t1 if sigma_max is None else times[0],
        t0 if sigma_min is None else times[-1],
    )


def schedule_times(
    process: AbstractProcess,
    num_steps: int,
    schedule: Schedule | None = None,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Float[Array, " num_steps"]:
    r"""`num_steps` decreasing times at noise levels $\sigma/\alpha$ of a schedule, evenly spaced in
    its index.

    With the cosine schedule of 1000 steps this is EDM's "iDDPM" discretisation: its table $u_j$
    with $C_1 = 0.001$ and $C_2 = 0.008$ is $\sigma/\alpha$ of that schedule, whose rates are
    clipped at $1 - C_1$ and offset by $C_2$.

    **Arguments:**

    - `process`: any process.
    - `num_steps`: how many times.
    - `schedule`: whose levels; `eqdiff.cosine_schedule(1000)` by default.
    - `sigma_min`, `sigma_max`: only levels in this range are visited; the range of the process by
        default.

    **Raises:** `ValueError` where the schedule has fewer levels in the range than `num_steps`.

    **Example:**

    ```python
    times = eqd.schedule_times(eqd.EDMSDE(), 18)  # EDM's iDDPM discretisation
    ```

    ??? cite "Reference"

        Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*, NeurIPS
        2022, table 1 and appendix C.3.
    """
    num_steps = whole("schedule_times", "num_steps", num_steps)
    schedule = cosine_schedule(1000) if schedule is None else schedule
    ends = _range("schedule_times", process, sigma_min, sigma_max)
    low, high = (float(level) for level in ends)
    table = np.exp(-0.5 * schedule.log_snrs)[::-1]
    # An end of the range that is itself a level has been through a logarithm and back.
    table = table[(table >= low * (1 - 1e-6)) & (table <= high * (1 + 1e-6))]
    if len(table) < num_steps:
        raise ValueError(
            f"schedule_times: the schedule has {len(table)} levels σ/α between {low:g} and "
            f"{high:g}, fewer than num_steps={num_steps}. Ask for fewer, or give a finer "
            "schedule: schedule=eqdiff.cosine_schedule(4000)."
        )
    kept = np.rint(np.linspace(0, len(table) - 1, num_steps)).astype(int)
    return _at_levels(process, jnp.asarray(-2 * np.log(table[kept]), float))


def _check_steps(owner: str, schedule: Schedule, num_steps: int) -> None:
    if num_steps > schedule.num_steps:
        raise ValueError(
            f"{owner}(num_steps={num_steps}): the schedule has only {schedule.num_steps} steps."
        )


@eqx.filter_jit
def _at_levels(process: AbstractProcess, log_snr: Float[Array, " n"]) -> Float[Array, " n"]:
    # Compiled as one: the inverse of a schedule's λ is a loop.
    return jax.vmap(process.time)(log_snr)


def _fraction(num_steps: int) -> Float[Array, " num_steps"]:
    """0 at the first time, 1 at the last; a single time is the first."""
    return jnp.linspace(0.0, 1.0, num_steps)


def _ends(process: AbstractProcess) -> tuple[Scalar, Scalar]:
    """The cleanest and the noisiest time."""
    return jnp.asarray(process.t0, float), jnp.asarray(process.t1, float)


def _check_level(owner: str, process: AbstractProcess) -> None:
    """That σ/α is finite at the noisiest time; the `t1` of a schedule is a time where it is."""
    if not isinstance(process, Schedule) and has_no_signal(process):
        where, remedy = without_signal(process)
        raise ValueError(
            f"{owner}: {where}, and sigma/alpha is infinite. {remedy}; a DDIM or DPMSolverPP "
            "with spacing=eqdiff.uniform_times may start there."
        )


def _range(
    owner: str, process: AbstractProcess, low: float | None, high: float | None
) -> tuple[Scalar, Scalar]:
    """The least and the greatest σ/α."""
    check_positive(owner, sigma_min=low, sigma_max=high)
    least, most = known_number(low), known_number(high)
    if least is not None and most is not None and least >= most:
        raise ValueError(
            f"{owner}(sigma_min={low}, sigma_max={high}): expected 0 < sigma_min < sigma_max."
        )
    if high is None:
        _check_level(owner, process)
    t0, t1 = _ends(process)

    def level(t: Scalar, given: float | None) -> Scalar:
        return jnp.exp(-0.5 * process.log_snr(t)) if given is None else jnp.asarray(given, float)

    return level(t0, low), level(t1, high)


def _with_ends(times: Float[Array, " n"], first: Scalar, last: Scalar) -> Float[Array, " n"]:
    # The way to a level and back rounds, and a time just outside the process would be refused.
    times = times.at[-1].set(last.astype(times.dtype))
    return times.at[0].set(first.astype(times.dtype))
