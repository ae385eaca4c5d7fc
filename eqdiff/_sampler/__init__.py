from .ancestral import Ancestral as Ancestral
from .base import (
    AbstractChain as AbstractChain,
    AbstractSampler as AbstractSampler,
    Trajectory as Trajectory,
)
from .ddim import DDIM as DDIM
from .solve import ProbabilityFlow as ProbabilityFlow, ReverseSDE as ReverseSDE
