r"""From continuous time to a schedule.

A VP process read off at $T$ times $t_i$ is a schedule with rates

$$\beta_i = 1 - \frac{\alpha^2(t_i)}{\alpha^2(t_{i-1})}, \qquad t_i = \frac{i + 1}{T} t_1. \tag{1}$$

It has exactly the process's levels at these times. The schedule that Song et al. (2021, appendix B)
call the discretised VP SDE has the rates $\beta_i = \beta(\tfrac{i}{T-1})/T$ instead, equal to (1)
only as $T \to \infty$; that is `linear_schedule(T)`, DDPM's own, whose rates at $T = 1000$ are
$\beta_{\min}/1000$ to $\beta_{\max}/1000$.
"""

import jax
import jax.numpy as jnp
import numpy as np

from .._check import whole
from .base import AbstractProcess
from .schedule import Schedule


def discretise(process: AbstractProcess, num_steps: int) -> Schedule:
    r"""The schedule of a variance-preserving process read off at $t_i = t_1 (i+1)/T$, equation (1).

    Step $i$ keeps the process's own $c_\text{noise}$ at $t_i$, so a network trained on one serves
    the other.

    **Arguments:**

    - `process`: a process with $\alpha_t^2 + \sigma_t^2 = 1$. One without signal at $t_1$, such as
        `CosineVPSDE(t1=1.0)`, gives zero terminal SNR.
    - `num_steps`: $T$.

    **Raises:** `ValueError` for a process that is not variance-preserving.

    **Example:**

    ```python
    schedule = eqd.discretise(eqd.VPSDE(), 1000)
    ```
    """
    num_steps = whole("discretise", "num_steps", num_steps)
    with jax.enable_x64(True):
        times = jnp.asarray(np.arange(1, num_steps + 1) * (float(process.t1) / num_steps))
        alpha = np.asarray(jax.vmap(process.alpha)(times))
        sigma = np.asarray(jax.vmap(process.sigma)(times))
        c_noise = np.asarray(jax.vmap(process.c_noise)(times))
    total = alpha**2 + sigma**2
    if not np.allclose(total, 1, atol=1e-6):
        # Sub-VP is variance-preserving at both ends, so the worst time is the one to show.
        worst = int(np.argmax(np.abs(total - 1)))
        raise ValueError(
            f"discretise: {type(process).__name__} is not variance-preserving (α² + σ² is "
            f"{total[worst]:g} at t = {times[worst]:g}), and a schedule of rates β is. Use a VP "
            "process; or no schedule: DDIM, ProbabilityFlow and ReverseSDE work on this process as "
            "it is, and its own steps between two times are process.transition(s, t)."
        )
    alpha_bar = alpha**2
    return Schedule(1 - alpha_bar / np.append(1.0, alpha_bar[:-1]), c_noise=c_noise)
