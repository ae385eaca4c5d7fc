r"""Uniform times, independent or evenly spread.

Independent times leave gaps: of $n$ draws some stretch of length $\log n/n$ is empty, and the mean
of a batch carries the full variance of $L_t$ over $t$. One shared offset,

$$u_i = \frac{i + u}{n}, \qquad u \sim U[0, 1), \tag{1}$$

removes that part of the variance and leaves only what $x_0$ and ε contribute at a given time
(Kingma et al. 2021, appendix I.1).
"""

import jax
import jax.numpy as jnp

from .._process import AbstractProcess, require_process, time_at
from .._types import Key
from .base import AbstractFixedTimesteps, evenly_spread, State


class Uniform(AbstractFixedTimesteps):
    r"""Independent uniform times, all weights 1.

    **Example:**

    ```python
    times = eqd.Uniform(eqd.VPSDE())
    t, weights = times.sample(times.init(), 8, key=jax.random.key(0))
    ```
    """

    process: AbstractProcess

    def __init__(self, process: AbstractProcess):
        r"""**Arguments:**

        - `process`: whose times: the steps $0, \dots, T-1$ of a schedule, otherwise the interval
            $[t_0, t_1]$.

        **Raises:** `TypeError` for anything but a process.
        """
        self.process = require_process(process, "Uniform")

    def sample(self, state: State, n: int, *, key: Key):
        return time_at(self.process, jax.random.uniform(key, (n,))), jnp.ones(n)


class LowDiscrepancy(AbstractFixedTimesteps):
    r"""Uniform times with one shared random offset: $u_i = (i + u)/n$, $u \sim U[0, 1)$.

    Each time is uniform on its own, so the estimate is unbiased, but a batch always covers the
    whole range: the loss is much less noisy than with independent times.

    **Example:**

    ```python
    times = eqd.LowDiscrepancy(eqd.cosine_schedule(1000))
    t, weights = times.sample(times.init(), 8, key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Kingma et al., *Variational Diffusion Models*, NeurIPS 2021, appendix I.1.
    """

    process: AbstractProcess

    def __init__(self, process: AbstractProcess):
        """**Arguments:** as for [`eqdiff.Uniform`][]."""
        self.process = require_process(process, "LowDiscrepancy")

    def sample(self, state: State, n: int, *, key: Key):
        return time_at(self.process, evenly_spread(n, key=key)), jnp.ones(n)
