r"""Inpainting and colourisation as they were published.

The code of Song et al. (2021), kept for comparison, differs from equation (1) of [`eqdiff.Replace`][] in four ways:

1. it starts with the known part free of noise, $x \leftarrow x + A^\top(y - Ax)$, where the network expects the noisiest state;
2. after a predictor's step from $t$ to $s$ the known part is put at the level of $t$, that before the step, so it is noisier than the rest
   whenever the network is called;
3. colourisation starts from the prior with its first channel, not its grey axis, set to 0;
4. the last state without noise ("denoise") has $\alpha_t y$ for its known part and the predictor's *noisy* state for the rest.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp

from .._types import Example, Key, Scalar
from .base import AbstractChain, Levels
from .constraint import AbstractConstraint
from .constraint_replace import AbstractReplacement, Colourise
from .predictor_corrector import FinalMean, FinalSample, PredictorCorrector


class _At(AbstractConstraint):
    """A replacement at a level of its own, after steps to whichever."""

    replacement: AbstractReplacement
    alpha: Scalar
    sigma: Scalar

    def __call__(self, levels: Levels, x: Example, x0: Example, *, key: Key) -> Example:
        return self.replacement.noised(self.alpha, self.sigma, x, key=key)


class PublishedReplacement(AbstractChain):
    """The published inpainting and colourisation: `PublishedReplacement(PredictorCorrector(..., final=FinalMean()), Inpaint(image, mask))`.

    For comparison with published results; [`eqdiff.PredictorCorrector`][] with `constrain=Inpaint(image, mask)` is what to use.

    ??? cite "Reference"

        Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*, ICLR 2021, appendix I, and its code.
    """

    chain: PredictorCorrector
    replacement: AbstractReplacement
    random: ClassVar[bool] = True

    def __init__(self, chain: PredictorCorrector, replacement: AbstractReplacement):
        """**Arguments:**

        - `chain`: the sampler, with `final=FinalMean()` for the official `denoise=True`, `FinalSample()` for `denoise=False`.
        - `replacement`: what is known: [`eqdiff.Inpaint`][], [`eqdiff.Colourise`][] or [`eqdiff.Replace`][].

        **Raises:** `ValueError` for another `final`, which was not published, or a chain that has a constraint already.
        """
        if not isinstance(chain.final, FinalMean | FinalSample) or chain.constrain is not None:
            raise ValueError(
                "PublishedReplacement takes a PredictorCorrector with final=FinalMean() or FinalSample() and without a constraint. For "
                "samples that end in the estimate write PredictorCorrector(constrain=Inpaint(image, mask))."
            )
        self.chain, self.replacement = chain, replacement

    def steps(self, process):
        times, each = self.chain.steps(process)
        return times, (each, each.levels.alpha, each.levels.sigma, jnp.arange(len(times)) == 0)

    def step(self, denoiser, t, this, x, args, *, key):
        each, alpha, sigma, first = this
        constrain = _At(self.replacement, alpha.astype(x.dtype), sigma.astype(x.dtype))
        missing, key = jax.random.split(key)
        x = jnp.where(first, self._start(x), x)
        if self.chain.corrector is None:
            # The published loop constrains after a corrector that does nothing, too.
            x = constrain(each.levels, x, x, key=missing)
        x, x0 = self._inner(constrain).step(denoiser, t, each, x, args, key=key)
        if isinstance(self.chain.final, FinalMean):
            mean = constrain.alpha * self.replacement.known(x)
            x = jnp.where(each.last, self.replacement.put(x, mean), x)
        return x, x0

    def _inner(self, constrain: AbstractConstraint) -> PredictorCorrector:
        chain = self.chain
        return PredictorCorrector(
            chain.num_steps,
            predictor=chain.predictor,
            corrector=chain.corrector,
            times=chain.times,
            ends=chain.ends,
            constrain=constrain,
            # Of the two last states only the noisy one is used, point 4.
            final=FinalSample(),
        )

    def _start(self, x: Example) -> Example:
        known = self.replacement.known(x)
        if isinstance(self.replacement, Colourise):
            return x.at[0].set(0) + self.replacement.put(jnp.zeros_like(x), known)
        return self.replacement.put(x, known)
