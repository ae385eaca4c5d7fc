r"""Fewer steps: respacing.

A schedule restricted to times $S_0 < S_1 < \dots$ is again a schedule, with rates (Nichol &
Dhariwal 2021, section 4)

$$\beta'_k = 1 - \frac{\bar\alpha_{S_k}}{\bar\alpha_{S_{k-1}}}, \qquad
  \bar\alpha_{S_{-1}} = 1. \tag{1}$$

Its posterior variances follow from $\beta'$ like any schedule's, so learned-range variances, which
interpolate between $\tilde\beta'$ and $\beta'$, are rescaled for free. The network's time input at
each step is still the original one.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from .schedule import Schedule


def respace(schedule: Schedule, timesteps: Sequence[int] | Int[np.ndarray, " K"]) -> Schedule:
    r"""The schedule that visits only some of a schedule's steps, equation (1).

    **Arguments:**

    - `schedule`: the schedule to thin.
    - `timesteps`: the indices to keep, increasing; for example `section_timesteps(T, (25,))` or
        `ddim_timesteps(T, 50)`.

    **Returns:** a schedule of `len(timesteps)` steps, which remembers the original indices and time
    inputs.

    **Raises:** `ValueError` for indices that are out of range or not increasing.

    **Example:**

    ```python
    steps = eqd.section_timesteps(1000, (25,))
    schedule = eqd.respace(eqd.cosine_schedule(1000), steps)
    ```
    """
    steps = np.asarray(timesteps)
    size = schedule.num_steps
    valid = (
        steps.ndim == 1
        and steps.size > 0
        and np.issubdtype(steps.dtype, np.integer)
        and steps[0] >= 0
        and steps[-1] < size
        and bool(np.all(np.diff(steps) > 0))
    )
    if not valid:
        raise ValueError(
            f"respace: expected increasing whole numbers from 0 to {size - 1}, got {timesteps!r}. "
            f"For n evenly spaced steps write section_timesteps({size}, (n,))."
        )
    kept = schedule.alpha_bar[steps]
    betas = 1 - kept / np.append(1.0, kept[:-1])
    return Schedule(betas, c_noise=schedule.c_noises[steps], timesteps=schedule.timesteps[steps])
