r"""Named schedules.

Linear rates, scaled so that fewer steps noise as much (Ho et al. 2020; scaled as in the official
code),

$$\beta_t = \tfrac{1000}{T}\,\mathrm{linspace}(10^{-4}, 0.02, T)_t; \tag{1}$$

and rates from any cumulative signal level $\bar\alpha(u)$, $u \in [0, 1]$, by the official ratio
formula

$$\beta_t = \min\left(1 - \frac{\bar\alpha((t+1)/T)}{\bar\alpha(t/T)},\ \beta_{\max}\right),
  \tag{2}$$

of which the cosine schedule is one (Nichol & Dhariwal 2021, equation 17),

$$\bar\alpha(u) = \frac{f(u)}{f(0)}, \qquad
  f(u) = \cos^2\left(\frac{u + s}{1 + s}\cdot\frac{\pi}{2}\right). \tag{3}$$
"""

import math
from collections.abc import Callable

import numpy as np

from .._check import whole
from .schedule import MAX_BETA, Schedule


def linear_schedule(
    num_steps: int = 1000, *, beta_min: float = 1e-4, beta_max: float = 0.02
) -> Schedule:
    r"""The linear schedule,
    $\beta_t = \frac{1000}{T}\,\mathrm{linspace}(\beta_{\min}, \beta_{\max}, T)_t$.

    **Arguments:**

    - `num_steps`: $T$.
    - `beta_min`, `beta_max`: the first and last rate at $T = 1000$.

    **Raises:** `ValueError` where a scaled rate exceeds 1, which is at $T < 20$ for the defaults.

    **Example:**

    ```python
    alpha_bar = eqd.linear_schedule(1000).alpha_bar  # from 0.9999 to 4e-5
    ```
    """
    num_steps = whole("linear_schedule", "num_steps", num_steps)
    scale = 1000 / num_steps
    return Schedule(np.linspace(scale * beta_min, scale * beta_max, num_steps))


def cosine_schedule(num_steps: int = 1000, *, offset: float = 0.008) -> Schedule:
    r"""The cosine schedule, $\bar\alpha(u) \propto \cos^2\left(\frac{u+s}{1+s}\frac\pi2\right)$,
    clipped at $\beta \le 0.999$.

    **Arguments:**

    - `num_steps`: $T$.
    - `offset`: $s$, which keeps the first $\beta$ from vanishing; the paper chose $\sqrt{\beta_0}$
        slightly below the width 1/127.5 of a pixel's bin.

    **Example:**

    ```python
    schedule = eqd.cosine_schedule(1000)
    ```
    """

    def alpha_bar(u: float) -> float:
        return math.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2

    return alpha_bar_schedule(alpha_bar, num_steps)


def alpha_bar_schedule(
    alpha_bar: Callable[[float], float], num_steps: int, *, max_beta: float = MAX_BETA
) -> Schedule:
    r"""The schedule of any decreasing $\bar\alpha(u)$ on $[0, 1]$, by the ratio formula (2).

    **Arguments:**

    - `alpha_bar`: the cumulative signal level, a positive decreasing function of $u = t/T$. Only
        ratios matter, so it need not be 1 at 0.
    - `num_steps`: $T$.
    - `max_beta`: the largest rate allowed; 1 for zero terminal SNR, if $\bar\alpha(1) = 0$.

    **Raises:** `ValueError` where $\bar\alpha$ does not decrease.

    **Example:**

    ```python
    schedule = eqd.alpha_bar_schedule(lambda u: 1 - 0.99 * u, 100)
    ```
    """
    num_steps = whole("alpha_bar_schedule", "num_steps", num_steps)
    levels = np.array([alpha_bar(i / num_steps) for i in range(num_steps + 1)], np.float64)
    if not (np.all(levels[:-1] > 0) and np.all(np.diff(levels) < 0)):
        i = int(np.argmax(~((np.diff(levels) < 0) & (levels[:-1] > 0))))
        raise ValueError(
            "alpha_bar_schedule: alpha_bar must be positive and decreasing, but "
            f"alpha_bar({i}/{num_steps}) = {levels[i]:g} is followed by {levels[i + 1]:g}."
        )
    return Schedule(np.minimum(1 - levels[1:] / levels[:-1], max_beta))
