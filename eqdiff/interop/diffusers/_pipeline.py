r"""Pipelines of diffusers, as a sampler and a denoiser.

`DDPMPipeline` and `DDIMPipeline` are a network and a scheduler, whose configuration says how they
sample. With $T$ = `num_train_timesteps`, $n$ steps and $r = \lfloor T/n \rfloor$ the times are, by
`timestep_spacing`,

- `leading`: $0, r, 2r, \dots$, each later by `steps_offset`;
- `trailing`: $T, T - T/n, \dots$, rounded, less one;
- `linspace`: $n$ numbers from 0 to $T - 1$, rounded.

`DDPMScheduler` is [`eqdiff.Ancestral`][] at these times. `DDIMScheduler` steps from $t$ to $t - r$,

$$x_{t - r} = \sqrt{\bar\alpha_{t - r}}\,\hat x_0
  + \sqrt{1 - \bar\alpha_{t - r} - \varsigma^2}\,\hat\varepsilon + \varsigma z, \qquad
  \varsigma^2 = \eta^2\frac{1 - \bar\alpha_{t - r}}{1 - \bar\alpha_t}
    \left(1 - \frac{\bar\alpha_t}{\bar\alpha_{t - r}}\right), \tag{1}$$

with $\bar\alpha = 1$ below zero, or $\bar\alpha_0$ where `set_alpha_to_one` is false. That is
[`eqdiff.DDIM`][] where $t - r$ is the next of the times and the last step goes to the data, as with
its defaults; with other spacings the next of the times may be another.

`clip_sample` is [`eqdiff.ClipDataAlone`][], which leaves $\hat\varepsilon$ as it is. So does
`thresholding`; [`eqdiff.DynamicThreshold`][] moves it.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..._check import check_fraction, whole
from ..._denoiser import AbstractDenoiser, AbstractWrapper, Estimate
from ..._guidance import ClipDataAlone
from ..._process import require_schedule, Schedule
from ..._sampler import AbstractChain, AbstractSampler, Ancestral, DDIM, Grid
from ..._shown import shown
from ..._types import Args, Example, Key, Time
from ..._variance import FixedSmall
from .._reading import reading
from ..files import name_of
from . import _folder
from ._load import load_diffusers
from ._scheduler import class_name


# The defaults of both schedulers.
_DEFAULTS: dict[str, Any] = dict(
    timestep_spacing="leading",
    steps_offset=0,
    set_alpha_to_one=True,
    clip_sample=True,
    clip_sample_range=1.0,
    thresholding=False,
    dynamic_thresholding_ratio=0.995,
    sample_max_value=1.0,
)
# How many steps each pipeline takes if it is not told, and what it is called with that scheduler.
_STEPS = {"DDPMPipeline": 1000, "DDIMPipeline": 50}
_ANCESTRAL, _IMPLICIT = (
    tuple(f"{name}{parallel}Scheduler" for parallel in ("", "Parallel"))
    for name in ("DDPM", "DDIM")
)


class _StridedDDIM(AbstractChain):
    """Equation (1)."""

    grid: Grid
    stride: int = eqx.field(static=True)
    eta: float = eqx.field(static=True)
    ends_in_data: bool = eqx.field(static=True)

    def __init__(self, times: np.ndarray, stride: int, eta: float, ends_in_data: bool):
        self.grid, self.stride = Grid(times=times), stride
        self.eta, self.ends_in_data = float(eta), ends_in_data

    @property
    def random(self) -> bool:
        return self.eta > 0

    @property
    def num_calls(self) -> int | None:
        return self.grid.num_steps

    def step(self, denoiser, step, x, args, *, key):
        on_x0, on_noise, std = (
            jnp.asarray(table, x.dtype)[step.index] for table in self._tables(denoiser.process)
        )
        estimate = denoiser(step.t, x, args)
        x = on_x0 * estimate.x0 + on_noise * estimate.noise
        if self.random:
            x = x + std * jax.random.normal(key, x.shape, x.dtype)
        return x, estimate.x0

    def _tables(self, process: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The coefficients of equation (1) by the number of steps that come after."""
        schedule = require_schedule(process, "The sampler of a DDIMScheduler")
        t = self.grid.exact(schedule)[::-1]
        alpha_bar, s = schedule.alpha_bar, t - self.stride
        end = 1.0 if self.ends_in_data else alpha_bar[0]
        here, there = alpha_bar[t], np.where(s < 0, end, alpha_bar[np.maximum(s, 0)])
        variance = self.eta**2 * (1 - there) / (1 - here) * (1 - here / there)
        return np.sqrt(there), np.sqrt(np.maximum(1 - there - variance, 0)), np.sqrt(variance)


class _ThresholdDataAlone(AbstractWrapper):
    """`thresholding=True`: x̂₀ is cut at a quantile of its magnitude, and divided by it."""

    denoiser: AbstractDenoiser
    ratio: float = eqx.field(static=True)
    most: float = eqx.field(static=True)

    def __init__(self, denoiser: AbstractDenoiser, ratio: float, most: float):
        self.denoiser, self.ratio, self.most = denoiser, ratio, most

    def __call__(
        self, t: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Estimate:
        estimate = self.denoiser(t, x, args, key=key)
        x0 = estimate.x0
        quantile = jnp.quantile(jnp.abs(x0), jnp.asarray(self.ratio, x0.dtype))
        scale = jnp.clip(quantile, 1, self.most)
        return Estimate(jnp.clip(x0, -scale, scale) / scale, estimate.noise, estimate.raw_variance)


def timesteps(options: Mapping[str, Any], num_train: int, num_steps: int) -> np.ndarray:
    """The times that the scheduler visits, decreasing."""
    spacing, offset = options["timestep_spacing"], options["steps_offset"]
    if type(offset) is not int:
        raise ValueError(f"the scheduler has steps_offset={shown(offset)}, expected a number.")
    if spacing == "leading":
        times = np.arange(num_steps)[::-1] * (num_train // num_steps) + offset
    elif spacing == "trailing":
        times = np.round(np.arange(num_train, 0, -num_train / num_steps)).astype(int) - 1
    elif spacing == "linspace":
        times = np.linspace(0, num_train - 1, num_steps).round()[::-1].astype(int)
    else:
        raise ValueError(
            f"the scheduler has timestep_spacing={shown(spacing)}, expected 'leading', 'trailing' "
            "or 'linspace'."
        )
    if not 0 <= times[-1] <= times[0] < num_train:
        raise ValueError(
            f"with steps_offset={offset} the first of {num_steps} steps is {times[0]}, but the "
            f"schedule ends at {num_train - 1}. Take fewer steps: num_steps={num_steps - 1}."
        )
    return times


def pipeline(
    denoiser: AbstractDenoiser,
    scheduler: Mapping[str, Any],
    name: str | None,
    num_steps: int | None,
    eta: float,
) -> tuple[AbstractSampler, AbstractDenoiser]:
    """The sampler, and the denoiser with its clipping, of a pipeline of this name or, if there is
    none, of that which its scheduler is the default of.
    """
    check_fraction("load_diffusers_pipeline", eta=eta)
    kind, name = _kind(class_name(scheduler), name)
    schedule = require_schedule(denoiser.process, "A pipeline of diffusers")
    options = _DEFAULTS | {key: scheduler[key] for key in _DEFAULTS if key in scheduler}
    most = schedule.num_steps
    if num_steps is None:
        num_steps = min(_STEPS[name], most)
    num_steps = whole("load_diffusers_pipeline", "num_steps", num_steps)
    if num_steps > most:
        raise ValueError(
            f"num_steps={num_steps}, but the schedule has {most} steps, and a pipeline visits each "
            "at most once."
        )
    times = timesteps(options, most, num_steps)
    bounded = _bounded(denoiser, options)
    if kind in _ANCESTRAL:
        if eta:
            raise ValueError(f"eta={eta:g} is of a DDIMPipeline, but this is a {name}.")
        _check_ancestral(denoiser, scheduler, times)
        return Ancestral(times=times), bounded
    if name == "DDPMPipeline" and eta:
        raise ValueError(f"eta={eta:g}, but a DDPMPipeline gives its {kind} none.")
    return _implicit(schedule, times, most // num_steps, eta, options), bounded


def _implicit(
    schedule: Schedule, times: np.ndarray, stride: int, eta: float, options: Mapping[str, Any]
) -> AbstractSampler:
    to_data = bool(options["set_alpha_to_one"])
    if to_data and bool(np.all(np.diff(times) == -stride)) and times[-1] < stride:
        return DDIM(times=times, eta=eta)
    return _StridedDDIM(times, stride, eta, to_data)


def _kind(scheduler: str, name: str | None) -> tuple[str, str]:
    """The class of the scheduler that samples, and of the pipeline."""
    if name is None and scheduler in _ANCESTRAL + _IMPLICIT:
        name = "DDPMPipeline" if scheduler in _ANCESTRAL else "DDIMPipeline"
    if name == "DDIMPipeline":
        # It makes a DDIMScheduler of whatever it is given.
        return _IMPLICIT[0], name
    if name not in (None, *_STEPS):
        raise ValueError(
            f"the pipeline is a {name}, expected a DDPMPipeline or a DDIMPipeline. Its network as "
            "a denoiser is load_diffusers(folder), for any sampler here."
        )
    if scheduler not in _ANCESTRAL + _IMPLICIT:
        raise ValueError(
            f"the scheduler is a {scheduler}, whose own steps eqdiff does not have: expected a "
            "DDPMScheduler or a DDIMScheduler. The denoiser is load_diffusers(folder), for any "
            "sampler here, such as eqdiff.DPMSolverPP."
        )
    return scheduler, name or "DDPMPipeline"


def _check_ancestral(
    denoiser: AbstractDenoiser, scheduler: Mapping[str, Any], times: np.ndarray
) -> None:
    """Raises `ValueError` where diffusers' own samples are not what anybody wants."""
    if scheduler.get("variance_type") == "fixed_large_log":
        raise ValueError(
            "the scheduler has variance_type='fixed_large_log', with which DDPMScheduler takes the "
            "square root of a negative number. Write eqdiff.Ancestral() with "
            "load_diffusers(folder)."
        )
    if times[-1] > 0 and not isinstance(denoiser.variance, FixedSmall):
        raise ValueError(
            f"the last step is step {times[-1]}, after which DDPMScheduler adds noise of "
            f"variance_type={shown(scheduler.get('variance_type'))} to the finished sample. "
            "Without that noise: eqdiff.Ancestral(times=…) with load_diffusers(folder), and the "
            f"times {shown(list(times.tolist()), 60)}."
        )


def _bounded(denoiser: AbstractDenoiser, options: Mapping[str, Any]) -> AbstractDenoiser:
    """The denoiser with the scheduler's clipping or thresholding."""

    def number(name: str) -> float:
        value = options[name]
        if not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"the scheduler has {name}={shown(value)}, expected a number above 0.")
        return float(value)

    if options["thresholding"]:
        ratio = number("dynamic_thresholding_ratio")
        check_fraction("the scheduler", dynamic_thresholding_ratio=ratio)
        return _ThresholdDataAlone(denoiser, ratio, number("sample_max_value"))
    if options["clip_sample"]:
        most = number("clip_sample_range")
        return ClipDataAlone(denoiser, -most, most)
    return denoiser


def load_diffusers_pipeline(
    folder: str | os.PathLike,
    num_steps: int | None = None,
    *,
    eta: float = 0.0,
    variant: str | None = None,
    compute_dtype: Any = jnp.float32,
) -> tuple[AbstractSampler, AbstractDenoiser]:
    """Makes the sampler and the denoiser of a `DDPMPipeline` or `DDIMPipeline` of diffusers.

    With the same prior noise and the same noise at each step they are those of diffusers, up to
    rounding; a pipeline moves its images to [0, 1] and clips them there.

    **Arguments:**

    - `folder`: the pipeline's folder, or one that [`eqdiff.interop.load_diffusers`][] reads. The
        pipeline is that of `model_index.json`, which may be in it or in one of the two folders
        above; without one it is `DDPMPipeline` for a `DDPMScheduler` and `DDIMPipeline` for a
        `DDIMScheduler`.
    - `num_steps`: `num_inference_steps`; by default the pipeline's, 1000 or 50, or all that there
        are.
    - `eta`: η of a `DDIMPipeline`.
    - `variant`, `compute_dtype`: as for [`eqdiff.interop.load_diffusers`][].

    **Returns:** a sampler, [`eqdiff.Ancestral`][], [`eqdiff.DDIM`][] or one of equation (1), and
    the denoiser with the scheduler's clipping, for each other.

    **Raises:** as [`eqdiff.interop.load_diffusers`][]; `ValueError` for another pipeline, another
    scheduler, and where diffusers returns NaN or adds noise to the finished sample.

    **Example:**

    ```python
    sampler, denoiser = eqd.interop.load_diffusers_pipeline("ddpm-cifar10-32")
    images = eqd.generate(sampler, denoiser, 64, (3, 32, 32), key=jax.random.key(0))
    ```
    """
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(
            f"load_diffusers_pipeline takes the path of a folder, got a {type(folder).__name__}."
        )
    with reading(name_of(folder)):
        path = _folder.network_folder(Path(folder).expanduser())
        config = _folder.network_config(path)
        scheduler, name = _folder.scheduler_config(path), _folder.pipeline_name(path)
        denoiser = load_diffusers(
            path, config, scheduler, variant=variant, compute_dtype=compute_dtype
        )
        return pipeline(denoiser, scheduler, name, num_steps, eta)
