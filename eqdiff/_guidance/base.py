r"""Denoisers made of denoisers.

Guidance replaces a denoiser by another of the same process, whose estimates still satisfy

$$x = \alpha\hat x_0 + \sigma\hat\varepsilon, \tag{1}$$

so that samplers and likelihoods need not know: moving $\hat x_0$ by δ moves $\hat\varepsilon$ by
$-(\alpha/\sigma)\delta$, and in terms of the score by a multiple of δ,
$\nabla\log p_t \mathrel{+}= (\alpha/\sigma^2)\,\delta$.
"""

from .._denoiser import AbstractDenoiser, AbstractWrapper, Estimate
from .._process import has_no_signal, without_signal
from .._types import Args, Example, Key, Time


class FixedArgs(AbstractWrapper):
    r"""The denoiser with its conditioning fixed: `FixedArgs(denoiser, y)(t, x, args)` is
    `denoiser(t, x, y)`.

    For a network that does not take the `args` that its guidance needs:
    [`eqdiff.ClassifierGuidance`][] of an unconditional network is
    `ClassifierGuidance(FixedArgs(denoiser), log_prob)`, whose `args` go to the classifier alone.

    **Example:**

    ```python
    unconditional = eqd.FixedArgs(eqd.GaussianDenoiser(eqd.VPSDE()))  # drops all args
    ```
    """

    denoiser: AbstractDenoiser
    args: Args

    def __init__(self, denoiser: AbstractDenoiser, args: Args = None):
        """**Arguments:**

        - `denoiser`: the denoiser to wrap.
        - `args`: what replaces the `args` it is called with; `None` for an unconditional
            network.
        """
        self.denoiser, self.args = denoiser, args

    def __call__(
        self, t: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Estimate:
        return self.denoiser(t, x, self.args, key=key)


def refuse_no_signal(owner: str, denoiser: AbstractDenoiser, why: str) -> None:
    """Raises `ValueError` for a process that has a time of α = 0, where `why`. A traced process is
    not checked.
    """
    if has_no_signal(denoiser.process):
        where, remedy = without_signal(denoiser.process)
        raise ValueError(
            f"{owner}: {where}, where {why}. {remedy}, and eqdiff.on(denoiser, process)."
        )
