r"""A paper's training configuration, as one record.

A recipe has the objects that a training program is made of (a process, a network, how its output is
read, how times are drawn, how samples are) and the numbers of its optimiser. It holds no loop and
no data: a program reads from it what it does not decide itself, and
`dataclasses.replace(recipe, learning_rate=1e-4)` changes a number.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from .._denoiser import CNoise, Denoiser
from .._loss import (
    AbstractWeighting,
    l_continuous,
    l_simple,
    l_vlb,
    NoiseWeighting,
    score_matching,
)
from .._parameterisation import AbstractParameterisation, PredictNoise
from .._predict import Prediction, stop_mean
from .._process import AbstractProcess, LearnedVPSDE, Schedule
from .._sampler import AbstractSampler
from .._timesteps import AbstractTimesteps
from .._types import Key, Scalar
from .._variance import AbstractVariance, FixedLarge
from ..nn import DividedBySigma, Embedding, FourierFeatures, Style, UNet, UNetShape
from ._ema import AbstractEMA, EMAWarmup, HalfLife


_POSITIVE = ("steps", "batch_size", "learning_rate", "grad_clip", "channels", "sample_steps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Changes:
    """Numbers of a recipe, each by default the recipe's own.

    **Example:**

    ```python
    recipe = eqd.train.recipes.edm(eqd.EDMSDE())
    recipe = recipe.changed(eqd.train.Changes(learning_rate=1e-4, batch_size=256))
    ```
    """

    steps: int | None = None
    """Optimiser steps. A finished run goes on if it is raised."""
    batch_size: int | None = None
    """Examples in a step, over all devices."""
    learning_rate: float | None = None
    """Adam's, after the warm-up."""
    warmup: int | None = None
    """Steps of linear warm-up, at most a tenth of all."""
    cosine_decay: bool | None = None
    """Whether the learning rate then falls to zero along a cosine."""
    grad_clip: float | None = None
    """Largest norm of a gradient; larger ones are scaled down to it."""
    ema: float | None = None
    """Rate of the average of the weights that is sampled from, after a warm-up."""
    horizontal_flip: bool | None = None
    """Mirror images at random."""
    channels: int | None = None
    """Width of the network's first level."""
    dropout: float | None = None
    """Its probability."""
    sample_steps: int | None = None
    """Steps of the sampler at the end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training configuration; `eqdiff.train.recipes` has those of the papers.

    **Fields:**

    - `process`: what adds the noise. An [`eqdiff.LearnedVPSDE`][] is trained with the network.
    - `parameterisation`, `variance`, `c_noise`: as for [`eqdiff.Denoiser`][].
    - `style`, `embed`, `shape`: the network's, as for [`eqdiff.nn.UNet`][]. The channels, classes
        and number of levels in `shape` are replaced by what the data ask for.
    - `by_sigma`: whether the network's output is divided by σ ([`eqdiff.nn.DividedBySigma`][]).
    - `octaves`: of Fourier features of the input ([`eqdiff.nn.FourierFeatures`][]); 0 for none.
    - `timesteps`: how times are drawn.
    - `weighting`: of score matching, for processes that are neither a schedule nor learned.
    - `sampler`: the paper's sampler, as a function of the number of steps.
    - `sample_steps`: the paper's number.
    - `batch_size`, `num_steps`, `learning_rate`, `warmup`, `grad_clip`, `ema`, `horizontal_flip`:
        of training, `grad_clip` the largest norm of a gradient or `None`.
    - `cosine_decay`: whether the learning rate falls to zero along a cosine; otherwise it is
        constant after its linear warm-up.

    **Example:**

    ```python
    recipe = eqd.train.recipes.edm(eqd.EDMSDE())  # an eqd.train.Recipe
    optimiser = recipe.optimiser()
    ```
    """

    process: AbstractProcess
    style: Style
    embed: Embedding
    shape: UNetShape
    timesteps: AbstractTimesteps
    sampler: Callable[[int], AbstractSampler]
    sample_steps: int
    parameterisation: AbstractParameterisation = PredictNoise()
    variance: AbstractVariance = FixedLarge()
    c_noise: CNoise | None = None
    by_sigma: bool = False
    octaves: int = 0
    weighting: AbstractWeighting = NoiseWeighting()
    batch_size: int = 128
    num_steps: int = 500_000
    learning_rate: float = 2e-4
    warmup: int = 5000
    cosine_decay: bool = False
    grad_clip: float | None = 1.0
    ema: AbstractEMA = EMAWarmup(0.9999)
    horizontal_flip: bool = True

    def changed(self, changes: Changes) -> "Recipe":
        """This recipe with the changes that are not `None`.

        **Raises:** `ValueError` for a number out of range.
        """
        given = {k: v for k, v in dataclasses.asdict(changes).items() if v is not None}
        for name, value in given.items():
            if name in _POSITIVE and not value > 0:
                raise ValueError(f"{name}={value}: expected a positive number.")
            if name in ("dropout", "ema") and not 0 <= value < 1:
                raise ValueError(f"{name}={value}: expected a number in [0, 1).")
            if value < 0:
                raise ValueError(f"{name}={value}: expected a number that is not negative.")
        most = self.process.num_steps if isinstance(self.process, Schedule) else None
        if most is not None and given.get("sample_steps", 0) > most:
            raise ValueError(
                f"sample_steps={given['sample_steps']}: the schedule has only {most} steps."
            )
        new: dict[str, Any] = {}
        for name, value in given.items():
            if name == "steps":
                new["num_steps"] = value
            elif name == "ema":
                new["ema"] = EMAWarmup(value)
            elif name == "batch_size":
                new[name] = value
                if isinstance(self.ema, HalfLife) and "ema" not in given:
                    half_life, ramp_up = self.ema.half_life, self.ema.ramp_up
                    new["ema"] = HalfLife(half_life, batch_size=value, ramp_up=ramp_up)
            elif name == "channels":
                new["shape"] = dataclasses.replace(self.shape, channels=value)
            elif name == "dropout":
                new["style"] = dataclasses.replace(self.style, dropout=value)
            else:
                new[name] = value
        return dataclasses.replace(self, **new)

    def numbers(self) -> dict[str, Any]:
        """What `Changes` can change, as it is: to be recorded as settings of a run."""
        return {
            "steps": self.num_steps,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "warmup": self.warmup,
            "cosine_decay": self.cosine_decay,
            "grad_clip": self.grad_clip,
            "ema": repr(self.ema),
            "horizontal_flip": self.horizontal_flip,
            "channels": self.shape.channels,
            "dropout": self.style.dropout,
            "sample_steps": self.sample_steps,
        }

    def network(
        self,
        example: tuple[int, ...],
        *,
        num_classes: int | None = None,
        levels: int = 256,
        compute_dtype: Any = jnp.float32,
        key: Key,
    ) -> PyTree:
        """A new network for examples of this shape; a denoiser that holds it and the process, where
        the process is learned.

        Levels whose sides would be odd or below four are left out.

        **Arguments:**

        - `example`: `(channels, length)`, `(channels, height, width)` or `(channels, depth, height,
            width)`.
        - `num_classes`, `compute_dtype`: as for [`eqdiff.nn.UNet`][].
        - `levels`: the number of grey levels, which Fourier features are made for.
        - `key`: a PRNG key.
        """
        channels, *sides = example
        mult = self.shape.channel_mult[: _num_levels(sides[-2:], len(self.shape.channel_mult))]
        # Attention at the same sides as for CIFAR-10.
        larger = max(1, max(sides[-2:]) // 32)
        shape = dataclasses.replace(
            self.shape,
            in_channels=channels * (1 + 2 * self.octaves),
            out_channels=2 * channels if self.variance.learned else channels,
            channel_mult=mult,
            attention_downsamples=tuple(larger * n for n in self.shape.attention_downsamples),
            num_classes=num_classes,
            dims=len(sides),
        )

        @eqx.filter_jit
        def build(key: Key) -> UNet:
            # One program: a network made piece by piece compiles hundreds.
            return UNet(shape, self.style, self.embed, compute_dtype=compute_dtype, key=key)

        net = build(key)
        if self.octaves:
            net = FourierFeatures(net, levels, self.octaves)
        if self.by_sigma:
            net = DividedBySigma(net)
        return self._denoiser(net) if isinstance(self.process, LearnedVPSDE) else net

    def denoiser(self, net: PyTree) -> Denoiser:
        """The network with this recipe's meaning; one that is a denoiser already, as it is."""
        return net if isinstance(net, Denoiser) else self._denoiser(net)

    def _denoiser(self, net: PyTree) -> Denoiser:
        return Denoiser(
            net,
            self.process,
            self.parameterisation,
            variance=self.variance,
            c_noise=self.c_noise,
        )

    def loss(
        self, prediction: Prediction, *, levels: int = 256
    ) -> tuple[Scalar, dict[str, Scalar]]:
        """The loss of one prediction, and terms to log.

        [`eqdiff.l_hybrid`][] on a schedule; [`eqdiff.l_continuous`][] on a learned process;
        [`eqdiff.score_matching`][] on any other.

        **Arguments:**

        - `prediction`: of `denoiser(net)`, from [`eqdiff.predict`][].
        - `levels`: the number of grey levels, of which only score matching knows nothing.
        """
        simple = l_simple(prediction)
        if isinstance(self.process, Schedule):
            vlb = l_vlb(stop_mean(prediction), levels=levels)
            return simple + 1e-3 * vlb, {"simple": simple, "vlb": vlb}
        if isinstance(self.process, LearnedVPSDE):
            return l_continuous(prediction, levels=levels), {"simple": simple}
        return score_matching(prediction, self.weighting), {"simple": simple}

    def optimiser(self, num_steps: int | None = None) -> optax.GradientTransformation:
        """Adam with a linear warm-up, clipped.

        Its state has the same shapes for all rates, warm-ups and decays, so that a run can go on
        with others.

        **Arguments:**

        - `num_steps`: at which a cosine decay ends; the recipe's by default. The warm-up takes at
            most a tenth of them.
        """
        num_steps = self.num_steps if num_steps is None else num_steps
        warmup = min(self.warmup, max(1, num_steps // 10))
        rate = optax.linear_schedule(0.0, self.learning_rate, warmup)
        if self.cosine_decay:
            left = max(1, num_steps - warmup)
            decay = optax.cosine_decay_schedule(self.learning_rate, left)
            rate = optax.join_schedules([rate, decay], [warmup])
        clip = float("inf") if self.grad_clip is None else self.grad_clip
        return optax.chain(optax.clip_by_global_norm(clip), optax.adam(rate))

    def small(self) -> "Recipe":
        """A version that learns 8×8 digits in minutes on two CPU cores.

        32 channels, one block per level, no dropout, 1,500 steps of 64 examples at a learning rate
        of 1e-3 with a cosine decay, and an average over the last few hundred steps.
        """
        style = dataclasses.replace(
            self.style, norm=dataclasses.replace(self.style.norm, groups=8), dropout=0.0
        )
        mult = (1, 2, 2, 2)[: max(2, len(self.shape.channel_mult))]
        shape = dataclasses.replace(self.shape, channels=32, num_res_blocks=1, channel_mult=mult)
        return dataclasses.replace(
            self,
            style=style,
            shape=shape,
            batch_size=64,
            num_steps=1500,
            learning_rate=1e-3,
            warmup=200,
            cosine_decay=True,
            grad_clip=1.0,
            ema=EMAWarmup(0.995),
            horizontal_flip=False,
            sample_steps=min(self.sample_steps, 100),
        )


def _num_levels(sides: list[int], most: int) -> int:
    levels = 1
    while levels < most and all(s % 2**levels == 0 and s // 2**levels >= 4 for s in sides):
        levels += 1
    return levels
