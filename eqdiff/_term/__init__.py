r"""The differential equations, as Diffrax terms.

For a denoiser on a process $\mathrm dx = f x\,\mathrm dt + g\,\mathrm dw$ (Song et al. 2021,
equations 5, 6, 13 and 39):

$$\text{forward} \quad \mathrm dx = f x\,\mathrm dt + g\,\mathrm dw, \tag{1}$$

$$\text{probability flow} \quad \frac{\mathrm dx}{\mathrm dt} = f x - \tfrac12 g^2 s
  = \dot\alpha\hat x_0 + \dot\sigma\hat\varepsilon =: v, \tag{2}$$

$$\text{augmented flow} \quad \frac{\mathrm dx}{\mathrm dt} = v, \qquad
  \frac{\mathrm d\ell}{\mathrm dt} = \operatorname{div} v, \tag{3}$$

$$\text{reverse} \quad
  \mathrm dx = \left(-v + \tfrac12 g^2 s\right)\mathrm d\tau + g\,\mathrm d\bar w, \qquad
  \tau = -t. \tag{4}$$

The right-hand form of (2) stays finite where α or σ vanishes, and is what is computed.

Any other SDE $\mathrm dx = f(t, x)\,\mathrm dt + g(t)\,\mathrm dw$, linear or not, is reversed by
its score alone (Anderson 1982):

$$\mathrm dx = \left(-f + g^2 s\right)\mathrm d\tau + g\,\mathrm d\bar w, \qquad
  \frac{\mathrm dx}{\mathrm dt} = f - \tfrac12 g^2 s. \tag{5}$$

**Clocks.** ODE terms keep natural time and may be solved in either direction. Reverse SDEs live on
the *increasing* clock $\tau = -t$, from $-t_1$ to $-t_0$: solved with a negative step, Diffrax's
stochastic Runge–Kutta methods (ShARK, SRA1, SPaRK, SEA) silently return garbage, so the terms
refuse it, and positive times too. The clock is a negation and not $t_1 - t$, which in float32 would
lose the times near the data.
"""

from .dpm import data_prediction as data_prediction
from .flow import (
    augmented_flow as augmented_flow,
    interval as interval,
    probability_flow as probability_flow,
    shape_of as shape_of,
    velocity as velocity,
)
from .general import (
    forward_general_sde as forward_general_sde,
    general_probability_flow as general_probability_flow,
    reverse_general_sde as reverse_general_sde,
)
from .multistep import DPMSolverPP as DPMSolverPP, UniPC as UniPC
from .sde import (
    forward_sde as forward_sde,
    reverse_drift as reverse_drift,
    reverse_sde as reverse_sde,
)
