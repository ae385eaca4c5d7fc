r"""The training configurations of the papers for CIFAR-10, for any process.

| recipe | network | the paper's process | steps | batch | rate | sampler |
|---|---|---|---|---|---|---|
| `iddpm` | Improved DDPM, 52 M | a schedule of 4000 steps | 500 k | 128 | 1e-4 | ancestral |
| `ddpmpp` | DDPM++, 62 M | VP, sub-VP | 1.3 M | 128 | 2e-4 | Euler–Maruyama |
| `ncsnpp` | NCSN++, 63 M | VE | 1.3 M | 128 | 2e-4 | predictor–corrector |
| `edm` | EDM's DDPM++, 56 M | EDM's | 390 k | 512 | 1e-3 | Heun's method |
| `vdm` | VDM's, of one resolution, 31 M | a learned one | 10 M | 128 | 2e-4 | ancestral |

DDPM++ and NCSN++ are also there `deep`: 107 and 108 million parameters, 950,000 steps.

Data are in [−1, 1]. For VE that makes the published noise levels, 0.01 and 50 for data in [0, 1],
twice as large: `VESDE(0.02, 100.0)`.

Each takes the process that it is to train on; how the network's output is read, and how samples
are drawn, follow the process: ε on schedules, VP and sub-VP, a score on VE for the networks that
know σ, $\varepsilon - x_0$ on a rectified flow, and otherwise EDM's preconditioning. A schedule
has a learned variance, and is trained with L_hybrid. A learned process
([`eqdiff.LearnedVPSDE`][]) is trained with the network, on the variational bound.

**Example:**

```python
recipe = eqd.train.recipes.edm(eqd.RectifiedFlow())
```
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import diffrax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._loss import EDMWeighting
from .._parameterisation import EDMPreconditioning, PredictFlow, PredictScore
from .._process import (
    AbstractProcess,
    cosine_schedule,
    EDMSDE,
    LearnedVPSDE,
    linear_schedule,
    RectifiedFlow,
    Schedule,
    SubVPSDE,
    VESDE,
    VPSDE,
)
from .._sampler import (
    AbstractSampler,
    Ancestral,
    DDIM,
    EulerMaruyama,
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    StochasticHeun,
)
from .._timesteps import LogitNormal, LogNormal, LowDiscrepancy
from .._variance import LearnedRange
from ..nn import embeddings, Style, styles, UNetShape
from ._ema import EMAWarmup, HalfLife
from ._recipe import Recipe as Recipe


Process = Literal["cosine", "linear", "vp", "sub-vp", "ve", "edm", "flow", "learned"]
Preset = Literal["iddpm", "ddpmpp", "ddpmpp-deep", "ncsnpp", "ncsnpp-deep", "edm", "vdm"]


def named(
    process: Process | str,
    preset: Preset | str | None = None,
    *,
    example: tuple[int, ...] = (3, 32, 32),
    levels: int = 256,
    num_timesteps: int | None = None,
    small: bool = False,
) -> Recipe:
    """A recipe by the names of its process and of its network, for a command line.

    **Arguments:**

    - `process`: one of `Process`.
    - `preset`: one of `Preset`; by default the one whose paper has the process.
    - `example`: the shape of an example. VE's largest noise is about the distance of two of them.
    - `levels`: the number of grey levels. A learned process begins at 0.4 of their distance.
    - `num_timesteps`: of a schedule; by default 4000, and 1000 if small.
    - `small`: whether to take [`eqdiff.train.Recipe.small`][].

    **Raises:** `ValueError` for another name.

    **Example:**

    ```python
    recipe = eqd.train.recipes.named("cosine", small=True)
    ```
    """
    length = num_timesteps or (1000 if small else 4000)
    processes: dict[str, tuple[str, Callable[[], AbstractProcess]]] = {
        "cosine": ("iddpm", lambda: cosine_schedule(length)),
        "linear": ("iddpm", lambda: linear_schedule(length)),
        "vp": ("ddpmpp", VPSDE),
        "sub-vp": ("ddpmpp", SubVPSDE),
        # 100 for CIFAR-10 in [-1, 1].
        "ve": ("ncsnpp", lambda: VESDE(0.02, 100 * math.sqrt(math.prod(example) / 3072))),
        "edm": ("edm", EDMSDE),
        "flow": ("edm", RectifiedFlow),
        "learned": ("vdm", lambda: _learned(levels)),
    }
    presets = {
        "iddpm": iddpm,
        "ddpmpp": ddpmpp,
        "ddpmpp-deep": functools.partial(ddpmpp, deep=True),
        "ncsnpp": ncsnpp,
        "ncsnpp-deep": functools.partial(ncsnpp, deep=True),
        "edm": edm,
        "vdm": vdm,
    }
    if process not in processes or (preset is not None and preset not in presets):
        raise ValueError(
            f"named({process!r}, {preset!r}): expected a process of {', '.join(processes)}, and a "
            f"preset of {', '.join(presets)}."
        )
    if num_timesteps is not None and process not in ("cosine", "linear"):
        raise ValueError(
            f"named({process!r}, num_timesteps={num_timesteps}): only a schedule has steps; leave "
            "it out."
        )
    default, make = processes[process]
    recipe = presets[preset or default](make())
    return recipe.small() if small else recipe


def iddpm(process: AbstractProcess) -> Recipe:
    """Improved DDPM (Nichol & Dhariwal 2021; the paper has dropout 0.1 on the linear schedule).

    **Arguments:**

    - `process`: the paper's is `cosine_schedule(4000)`.

    **Example:**

    ```python
    recipe = eqd.train.recipes.iddpm(eqd.cosine_schedule(4000))
    ```
    """
    return Recipe(
        process=process,
        style=styles.iddpm(dropout=0.3),
        embed=embeddings.iddpm(),
        shape=UNetShape(num_res_blocks=3, attention_downsamples=(2, 4)),
        learning_rate=1e-4,
        warmup=0,
        grad_clip=None,
        horizontal_flip=False,
        **_reading(process),
    )


def ddpmpp(process: AbstractProcess, *, deep: bool = False) -> Recipe:
    """DDPM++ continuous (Song et al. 2021, `configs/{vp,subvp}/cifar10_ddpmpp_continuous`).

    **Arguments:**

    - `process`: the paper's are `VPSDE()` and `SubVPSDE()`.
    - `deep`: eight blocks per level instead of four, 950,000 steps.

    **Example:**

    ```python
    recipe = eqd.train.recipes.ddpmpp(eqd.SubVPSDE(), deep=True)
    ```
    """
    return _score_sde(process, styles.ddpmpp(dropout=0.1), deep)


def ncsnpp(process: AbstractProcess, *, deep: bool = False) -> Recipe:
    """NCSN++ continuous (Song et al. 2021, `configs/ve/cifar10_ncsnpp_continuous`). For images: its
    filters have two dimensions.

    **Arguments:**

    - `process`: the paper's is `VESDE(0.02, 100.0)` for data in [−1, 1].
    - `deep`: eight blocks per level instead of four, 950,000 steps.

    **Example:**

    ```python
    recipe = eqd.train.recipes.ncsnpp(eqd.VESDE(0.02, 100.0))
    ```
    """
    return _score_sde(process, styles.ncsnpp(dropout=0.1), deep)


def edm(process: AbstractProcess) -> Recipe:
    """EDM's DDPM++ for CIFAR-10, without augmentation (Karras et al. 2022).

    200 million images, of which the first ten are warm-up; an average with a half-life of 500,000
    images.

    **Arguments:**

    - `process`: the paper's is `EDMSDE()`.

    **Example:**

    ```python
    recipe = eqd.train.recipes.edm(eqd.EDMSDE())
    ```
    """
    return Recipe(
        process=process,
        style=styles.edm(dropout=0.13),
        embed=embeddings.edm(),
        shape=UNetShape(num_res_blocks=4, channel_mult=(2, 2, 2), stem_mult=1),
        batch_size=512,
        num_steps=200_000_000 // 512,
        learning_rate=1e-3,
        warmup=10_000_000 // 512,
        grad_clip=None,
        ema=HalfLife(500_000, batch_size=512),
        **_reading(process),
    )


def vdm(process: AbstractProcess) -> Recipe:
    """Variational diffusion models' configuration for CIFAR-10, for a likelihood (Kingma et al.
    2021, appendix B), without weight decay.

    One resolution, 32 blocks, and attention in the middle; the network sees Fourier features of its
    input, but where its parameterisation scales that.

    **Arguments:**

    - `process`: the paper's is `LearnedVPSDE()` with ends that are learned, for which write arrays.

    **Example:**

    ```python
    recipe = eqd.train.recipes.vdm(eqd.LearnedVPSDE(jnp.array(13.3), jnp.array(-5.0)))
    ```
    """
    reading = _reading(process)
    return Recipe(
        process=process,
        style=styles.ddpm(dropout=0.1),
        embed=embeddings.iddpm(),
        shape=UNetShape(num_res_blocks=32, channel_mult=(1,), attention_downsamples=()),
        num_steps=10_000_000,
        warmup=100,
        grad_clip=None,
        horizontal_flip=False,
        octaves=0 if "parameterisation" in reading else 2,
        **reading,
    )


def _learned(levels: int) -> AbstractProcess:
    """A learned process that begins at the level of bound_bits."""
    first = -2 * math.log(0.4 * 2 / (levels - 1))
    return LearnedVPSDE(jnp.asarray(first), jnp.asarray(-5.0))


def _score_sde(process: AbstractProcess, style: Style, deep: bool) -> Recipe:
    reading = _reading(process)
    embed = embeddings.score_sde()
    if isinstance(process, VESDE):
        # The time input is log σ, drawn evenly, and the output is divided by σ.
        embed = embeddings.score_sde(embeddings.Fourier())
        reading |= dict(
            timesteps=LowDiscrepancy(process), parameterisation=PredictScore(), by_sigma=True
        )
        del reading["weighting"]
    return Recipe(
        process=process,
        style=style,
        embed=embed,
        shape=UNetShape(num_res_blocks=8 if deep else 4, stem_mult=1),
        num_steps=950_000 if deep else 1_300_000,
        ema=EMAWarmup(0.999 if isinstance(process, VESDE) else 0.9999),
        **reading,
    )


def _reading(process: AbstractProcess) -> dict[str, Any]:
    """How a network is read on a process, how times are drawn, and how samples are."""
    if isinstance(process, Schedule):
        return dict(
            timesteps=LowDiscrepancy(process),
            variance=LearnedRange(),
            sampler=Ancestral,
            sample_steps=process.num_steps,
        )
    if isinstance(process, LearnedVPSDE):
        return dict(timesteps=LowDiscrepancy(process), sampler=_ddpm, sample_steps=1000)
    if isinstance(process, RectifiedFlow):
        return dict(
            timesteps=LogitNormal(process),
            parameterisation=PredictFlow(),
            sampler=_heun,
            sample_steps=50,
        )
    if isinstance(process, EDMSDE | VESDE):
        corrects = isinstance(process, VESDE)
        return dict(
            timesteps=LogNormal(process),
            parameterisation=EDMPreconditioning(),
            weighting=EDMWeighting(),
            sampler=_predictor_corrector if corrects else StochasticHeun,
            sample_steps=1000 if corrects else 18,
        )
    return dict(timesteps=LowDiscrepancy(process), sampler=_predictor, sample_steps=1000)


def _ddpm(num_steps: int) -> AbstractSampler:
    # What ancestral sampling is on a process without steps of its own.
    return DDIM(num_steps, eta=1.0)


def _heun(num_steps: int) -> AbstractSampler:
    return ProbabilityFlow(diffrax.Heun(), num_steps=num_steps)


def _predictor_corrector(num_steps: int) -> AbstractSampler:
    return PredictorCorrector(num_steps, corrector=Langevin(snr=0.16))


def _predictor(num_steps: int) -> AbstractSampler:
    return PredictorCorrector(
        num_steps, predictor=EulerMaruyama(), corrector=None, spacing=_down_to_one_thousandth
    )


def _down_to_one_thousandth(process: AbstractProcess, num_steps: int) -> Float[Array, " n"]:
    """The paper's sampling times for VP and sub-VP, which are trained to 1e-5."""
    return jnp.linspace(process.t1, 1e-3, num_steps)
