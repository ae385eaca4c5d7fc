r"""Exact likelihood and encoding by the probability flow.

The flow carries the data's density to the prior's, so with the augmented flow of `_term`

$$\log p_{t_0}(x) = \log p_{t_1}(x(t_1)) +
  \int_{t_0}^{t_1}\operatorname{div} v(t, x(t))\,\mathrm dt \tag{1}$$

(Chen et al. 2018; Song et al. 2021, equation 39 and appendix D.2), the prior standing for
$p_{t_1}$. What is computed is the density of the *model*: the prior pushed through the flow. In
bits per dimension, with a dequantisation's offset $c$,

$$\mathrm{bpd} = -\frac{\log p_{t_0}(y) + c}{D\log 2}. \tag{2}$$

The latent $x(t_1)$ identifies $x$: solved back it returns $x$, and between two latents lies a path
of plausible data. Latents are nearly Gaussian in many dimensions, so nearly of one length, and so
is what [`eqdiff.slerp`][] passes through; a straight line would cut through the ball, where no
latents are.

**Network calls.** One velocity is one network call when encoding; with $n$ Hutchinson probes one
call carrying $n$ tangents, which costs about $1 + n$ calls; with the exact trace
$1 + \lceil D/\text{chunk}\rceil$ calls with $D$ tangents between them. How many velocities a solve
took is in its `stats`.
"""

from .bits import bits_per_dim as bits_per_dim, BitsPerDim as BitsPerDim
from .density import log_likelihood as log_likelihood, LogLikelihood as LogLikelihood
from .dequantise import (
    AbstractDequantisation as AbstractDequantisation,
    GaussianDequantisation as GaussianDequantisation,
    TruncatedNormalDequantisation as TruncatedNormalDequantisation,
    UniformDequantisation as UniformDequantisation,
)
from .latent import slerp as slerp
from .variational import (
    LogisticNoise as LogisticNoise,
    VariationalDequantisation as VariationalDequantisation,
)
