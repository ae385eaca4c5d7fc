from .ancestral import Ancestral as Ancestral
from .base import (
    AbstractChain as AbstractChain,
    AbstractSampler as AbstractSampler,
    Step as Step,
    Trajectory as Trajectory,
)
from .constrained import Constrained as Constrained
from .constraint import AbstractConstraint as AbstractConstraint
from .constraint_replace import Colourise as Colourise, Inpaint as Inpaint, Replace as Replace
from .correctors import (
    AbstractCorrector as AbstractCorrector,
    AnnealedLangevin as AnnealedLangevin,
    Langevin as Langevin,
)
from .daps import DAPS as DAPS
from .data_draw import (
    AbstractDataDraw as AbstractDataDraw,
    LangevinDraw as LangevinDraw,
    LinearisedDraw as LinearisedDraw,
)
from .ddim import DDIM as DDIM
from .diffpir import DiffPIR as DiffPIR
from .dpm import DPMSolverPP as DPMSolverPP
from .grid import Grid as Grid
from .heun import StochasticHeun as StochasticHeun
from .particles import Particles as Particles
from .predictor_corrector import PredictorCorrector as PredictorCorrector
from .predictors import (
    AbstractPredictor as AbstractPredictor,
    AncestralPredictor as AncestralPredictor,
    DiffraxPredictor as DiffraxPredictor,
    EulerMaruyama as EulerMaruyama,
    ReverseDiffusion as ReverseDiffusion,
)
from .sde_dpm import SDEDPMSolverPP as SDEDPMSolverPP
from .solve import (
    error_norm as error_norm,
    integrate as integrate,
    ProbabilityFlow as ProbabilityFlow,
    ReverseSDE as ReverseSDE,
)
from .twisted import TwistedSMC as TwistedSMC
from .unipc import UniPC as UniPC
