from .ancestral import Ancestral as Ancestral
from .base import (
    AbstractChain as AbstractChain,
    AbstractSampler as AbstractSampler,
    Levels as Levels,
    Trajectory as Trajectory,
)
from .churn import StochasticHeun as StochasticHeun
from .constrained import Constrained as Constrained
from .constraint import AbstractConstraint as AbstractConstraint
from .constraint_published import PublishedReplacement as PublishedReplacement
from .constraint_replace import (
    AbstractReplacement as AbstractReplacement,
    Colourise as Colourise,
    Inpaint as Inpaint,
    Replace as Replace,
)
from .correctors import (
    AbstractCorrector as AbstractCorrector,
    AbstractNorms as AbstractNorms,
    AnnealedLangevin as AnnealedLangevin,
    BatchMean as BatchMean,
    Langevin as Langevin,
    PerExample as PerExample,
)
from .ddim import DDIM as DDIM
from .multistep import DPMSolverPP as DPMSolverPP
from .predictor_corrector import (
    AbstractFinal as AbstractFinal,
    FinalEstimate as FinalEstimate,
    FinalMean as FinalMean,
    FinalSample as FinalSample,
    PredictorCorrector as PredictorCorrector,
)
from .predictors import (
    AbstractPredictor as AbstractPredictor,
    AncestralPredictor as AncestralPredictor,
    DiffraxPredictor as DiffraxPredictor,
    EulerMaruyama as EulerMaruyama,
    Proposal as Proposal,
    ReverseDiffusion as ReverseDiffusion,
    Step as Step,
)
from .solve import ProbabilityFlow as ProbabilityFlow, ReverseSDE as ReverseSDE
from .times import (
    chain_times as chain_times,
    karras_times as karras_times,
    log_snr_times as log_snr_times,
    quadratic_times as quadratic_times,
    uniform_times as uniform_times,
)
