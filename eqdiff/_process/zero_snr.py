r"""Zero terminal SNR: a schedule that ends in pure noise.

The last step of most schedules keeps some signal ($\sqrt{\bar\alpha_{999}} = 0.006$ for the linear
one, 0.068 for Stable Diffusion's), which a network learns to read: its mean, for an image the
brightness. Sampling starts from noise without it. So Lin et al. (2024, algorithm 1) shift
$\sqrt{\bar\alpha}$ to end at 0, and scale it to begin where it did,

$$\sqrt{\bar\alpha'_t} = \left(\sqrt{\bar\alpha_t} - \sqrt{\bar\alpha_{T-1}}\right)
  \frac{\sqrt{\bar\alpha_0}}{\sqrt{\bar\alpha_0} - \sqrt{\bar\alpha_{T-1}}}. \tag{1}$$

At $T - 1$ then $x = \varepsilon$: the noise is known but says nothing about $x_0$. A network must
predict $v$, there $-x_0$, or $x_0$ itself; and samplers must visit that step.
"""

import numpy as np

from .schedule import Schedule


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    r"""The schedule with $\sqrt{\bar\alpha}$ shifted and scaled to end at 0, equation (1).

    **Arguments:**

    - `schedule`: any schedule of at least two steps.

    **Returns:** a schedule of the same steps whose last rate is 1.

    **Raises:** `ValueError` for a schedule of a single step.

    **Example:**

    ```python
    schedule = eqd.zero_terminal_snr(eqd.linear_schedule(1000))
    denoiser = eqd.GaussianDenoiser(schedule, parameterisation=eqd.PredictVelocity())
    x0 = eqd.DDIM(10, spacing=eqd.trailing_times)(denoiser, jnp.ones(3))  # starts at the last step
    ```

    ??? cite "Reference"

        Lin, Liu, Li & Yang, *Common Diffusion Noise Schedules and Sample Steps are Flawed*, WACV
        2024.
    """
    if schedule.num_steps < 2:
        raise ValueError(
            "zero_terminal_snr: the schedule has one step, and no other that could keep its level. "
            "Write Schedule(np.ones(1)) for one that erases everything."
        )
    root = np.sqrt(schedule.alpha_bar)
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    alpha_bar = root**2
    betas = 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])
    return Schedule(betas, c_noise=schedule.c_noises, timesteps=schedule.timesteps)
