r"""From a noise level back to a time.

Solvers and time grids that think in a process's own clock — $\lambda = \log(\alpha^2/\sigma^2)$, or the noise-to-signal ratio
$\sigma/\alpha = e^{-\lambda/2}$ — call the denoiser at the time of that level.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from .._process import AbstractProcess, AbstractSDE
from .._schedule import Schedule
from .._types import Scalar


def time_of(process: AbstractProcess, log_snr: Scalar) -> Shaped[Array, ""]:
    r"""The time at which $\lambda_t$ is `log_snr`; on a discrete chain the index whose $\lambda_t$ is nearest.

    **Raises:** `ValueError` for a process that is neither in continuous time nor a chain.
    """
    if isinstance(process, AbstractSDE):
        return process.time(log_snr)
    if isinstance(process, Schedule):
        alpha_bar = process.alpha_bar
        table = jnp.asarray(np.log(alpha_bar) - np.log1p(-alpha_bar), log_snr.dtype)
        return jnp.argmin(jnp.abs(table - log_snr)).astype(jnp.int32)
    raise ValueError(
        f"Finding the time of a noise level needs a process in continuous time or a Schedule, but got "
        f"{type(process).__name__}. Derive it from eqdiff.AbstractSDE, which has a method `time`."
    )
