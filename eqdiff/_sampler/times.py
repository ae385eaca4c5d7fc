r"""Which times a sampler visits.

A grid is $n$ decreasing times, given to a sampler as `times=`. The functions here space them evenly in some quantity, from the
process's noisiest time to its cleanest: in $t$ itself (`uniform`), in $\sqrt t$ (`quadratic`; Song, Meng & Ermon 2021), in the
log-SNR λ (Lu et al. 2022), or in a power of the noise level $s = \sigma/\alpha$ (Karras et al. 2022, equation 5),

$$s_i = \left(s_{\max}^{1/\rho} + \tfrac{i}{n-1}\left(s_{\min}^{1/\rho} - s_{\max}^{1/\rho}\right)\right)^{\rho}, \qquad
  \lambda_i = -2\log s_i, \tag{1}$$

or visit the levels of another chain (Karras et al. 2022, table 1: the "iDDPM" discretisation). A level becomes a time by the
process's `time(log_snr)`. On a discrete chain it is the index of the nearest level, moved where two levels would share one. (Where the
chain's last rate was clipped, as the cosine schedule's, grids in λ or σ/α spend several times on that one step: build the
denoiser on `schedule.continuous()`, which leaves it out.)
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from .._denoiser import check_time
from .._process import AbstractProcess, AbstractSDE
from .._schedule import cosine_schedule, Schedule
from .._solver import time_of
from .._types import Scalar
from .base import check_num_steps


def uniform_times(process: AbstractProcess, num_steps: int) -> Shaped[Array, " num_steps"]:
    r"""`num_steps` decreasing times, evenly spaced in $t$: what samplers use unless told otherwise.

    **Arguments:**

    - `process`: any process.
    - `num_steps`: how many times, both ends of the process included.

    **Raises:** `ValueError` for less than one step, or more than a chain has.
    """
    _check("uniform_times", process, num_steps)
    return process.grid(num_steps)


def quadratic_times(process: AbstractProcess, num_steps: int) -> Shaped[Array, " num_steps"]:
    r"""`num_steps` decreasing times, evenly spaced in $\sqrt t$: more of them near the data.

    The official code stops at 80 % of the chain; here both ends are included. Arguments and errors as for
    [`eqdiff.uniform_times`][].

    ??? cite "Reference"

        Song, Meng & Ermon, *Denoising Diffusion Implicit Models*, ICLR 2021, appendix D.2.
    """
    _check("quadratic_times", process, num_steps)
    t0, t1 = _ends(process)
    root = jnp.sqrt(t1) + _fraction(num_steps) * (jnp.sqrt(t0) - jnp.sqrt(t1))
    if isinstance(process, Schedule):
        return _distinct(process, jnp.rint(root**2).astype(jnp.int32))
    return _with_ends(root**2, t1, t0)


def log_snr_times(process: AbstractProcess, num_steps: int) -> Shaped[Array, " num_steps"]:
    r"""`num_steps` decreasing times, evenly spaced in $\lambda_t = \log(\alpha_t^2/\sigma_t^2)$.

    The same as [`eqdiff.karras_times`][] for $\rho \to \infty$. Arguments and errors as for [`eqdiff.uniform_times`][].

    ??? cite "Reference"

        Lu et al., *DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps*, NeurIPS
        2022, section 3.3.
    """
    _check("log_snr_times", process, num_steps)
    t0, t1 = _ends(process)
    first, last = process.log_snr(t1), process.log_snr(t0)
    times = _at_levels(process, first + _fraction(num_steps) * (last - first))
    return times if isinstance(process, Schedule) else _with_ends(times, t1, t0)


def karras_times(
    process: AbstractProcess,
    num_steps: int,
    rho: float = 7.0,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Shaped[Array, " num_steps"]:
    r"""`num_steps` decreasing times whose noise levels $\sigma/\alpha$ are evenly spaced in $(\sigma/\alpha)^{1/\rho}$, equation (1).

    **Arguments:**

    - `process`: any process.
    - `num_steps`: how many times.
    - `rho`: ρ; 7 crowds them near the data, 1 is uniform in $\sigma/\alpha$.
    - `sigma_min`, `sigma_max`: the levels $\sigma/\alpha$ of the last and the first time; the process's own ends by default.

    **Raises:** `ValueError` for less than one step or more than a chain has, ρ ≤ 0, or levels that do not decrease.

    ??? cite "Reference"

        Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*, NeurIPS 2022, equation 5.
    """
    _check("karras_times", process, num_steps)
    if not rho > 0:
        raise ValueError(f"karras_times(rho={rho}): expected a positive number; the paper's is 7.")
    low, high = _range("karras_times", process, sigma_min, sigma_max)
    first, last = high ** (1 / rho), low ** (1 / rho)
    level = (first + _fraction(num_steps) * (last - first)) ** rho
    times = _at_levels(process, -2 * jnp.log(level))
    if isinstance(process, Schedule):
        return times
    t0, t1 = _ends(process)
    return _with_ends(
        times,
        t1 if sigma_max is None else times[0],
        t0 if sigma_min is None else times[-1],
    )


def chain_times(
    process: AbstractProcess,
    num_steps: int,
    schedule: Schedule | None = None,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Shaped[Array, " num_steps"]:
    r"""`num_steps` decreasing times at noise levels $\sigma/\alpha$ of a chain, evenly spaced in its index.

    With the cosine schedule of 1000 steps this is EDM's "iDDPM" discretisation: its table $u_j$ with $C_1 = 0.001$ and
    $C_2 = 0.008$ is $\sigma/\alpha$ of that chain, whose rates are clipped at $1 - C_1$ and offset by $C_2$.

    **Arguments:**

    - `process`: any process.
    - `num_steps`: how many times.
    - `schedule`: the chain; `eqdiff.cosine_schedule(1000)` by default.
    - `sigma_min`, `sigma_max`: only levels in this range are visited; the range of the process by default.

    **Raises:** `ValueError` where the chain has fewer levels in the range than `num_steps`.

    ??? cite "Reference"

        Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*, NeurIPS 2022, table 1 and
        appendix C.3.
    """
    _check("chain_times", process, num_steps)
    schedule = cosine_schedule(1000) if schedule is None else schedule
    low, high = (float(level) for level in _range("chain_times", process, sigma_min, sigma_max))
    table = np.sqrt(1 / schedule.alpha_bar - 1)[::-1]
    # An end of the range that is itself a level has been through a logarithm and back.
    table = table[(table >= low * (1 - 1e-6)) & (table <= high * (1 + 1e-6))]
    if len(table) < num_steps:
        raise ValueError(
            f"chain_times: the chain has {len(table)} levels σ/α between {low:g} and {high:g}, fewer than "
            f"num_steps={num_steps}. Ask for fewer, or give a finer chain: schedule=eqdiff.cosine_schedule(4000)."
        )
    kept = np.rint(np.linspace(0, len(table) - 1, num_steps)).astype(int)
    return _at_levels(process, jnp.asarray(-2 * np.log(table[kept]), float))


def check_times(process: AbstractProcess, times: Shaped[Array, " n"]) -> Shaped[Array, " n"]:
    """The decreasing times themselves; raises `ValueError` for known ones that the process does not have."""
    check_time(process, times[0])
    check_time(process, times[-1])
    return times


def _check(owner: str, process: AbstractProcess, num_steps: int) -> None:
    check_num_steps(owner, num_steps)
    if isinstance(process, Schedule) and num_steps > process.num_steps:
        raise ValueError(
            f"{owner}(num_steps={num_steps}): the chain has only {process.num_steps} steps."
        )


def _fraction(num_steps: int) -> Float[Array, " num_steps"]:
    """0 at the first time, 1 at the last; a single time is the first."""
    return jnp.linspace(0.0, 1.0, num_steps)


def _ends(process: AbstractProcess) -> tuple[Scalar, Scalar]:
    """The cleanest and the noisiest time."""
    if isinstance(process, Schedule):
        return jnp.asarray(0.0), jnp.asarray(float(process.num_steps - 1))
    if isinstance(process, AbstractSDE):
        return jnp.asarray(process.t0, float), jnp.asarray(process.t1, float)
    raise ValueError(
        f"Time grids need a process in continuous time or a Schedule, but got {type(process).__name__}."
    )


def _range(
    owner: str, process: AbstractProcess, low: float | None, high: float | None
) -> tuple[Scalar, Scalar]:
    """The least and the greatest σ/α."""
    if low is not None and high is not None and not 0 < low < high:
        raise ValueError(
            f"{owner}(sigma_min={low}, sigma_max={high}): expected 0 < sigma_min < sigma_max."
        )
    t0, t1 = _ends(process)

    def level(t: Scalar, given: float | None) -> Scalar:
        return jnp.exp(-0.5 * process.log_snr(t)) if given is None else jnp.asarray(given, float)

    return level(t0, low), level(t1, high)


def _at_levels(process: AbstractProcess, log_snr: Float[Array, " n"]) -> Shaped[Array, " n"]:
    times = jax.vmap(lambda level: time_of(process, level))(log_snr)
    return _distinct(process, times) if isinstance(process, Schedule) else times


def _with_ends(times: Float[Array, " n"], first: Scalar, last: Scalar) -> Float[Array, " n"]:
    # The way to a level and back rounds, and a time just outside the process would be refused.
    times = times.at[-1].set(last.astype(times.dtype))
    return times.at[0].set(first.astype(times.dtype))


def _distinct(process: Schedule, times: Shaped[Array, " n"]) -> Shaped[Array, " n"]:
    """Indices that would coincide are moved apart by the least amount, up first and then down from the chain's end."""
    place = jnp.arange(len(times), dtype=jnp.int32)
    # Strictly increasing from the clean end: k_i = max_{j ≤ i} (t_j + i − j), and no further than the chain reaches.
    up = jax.lax.cummax(times[::-1].astype(jnp.int32) - place) + place
    return jnp.minimum(up, process.num_steps - len(times) + place)[::-1]
