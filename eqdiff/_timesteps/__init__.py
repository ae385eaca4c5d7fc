from .base import AbstractTimesteps as AbstractTimesteps
from .importance import (
    LikelihoodImportance as LikelihoodImportance,
    LogitNormal as LogitNormal,
    LogNormal as LogNormal,
    VelocityImportance as VelocityImportance,
)
from .second_moment import LossSecondMoment as LossSecondMoment
from .smoothed import SmoothedSecondMoment as SmoothedSecondMoment
from .uniform import LowDiscrepancy as LowDiscrepancy, Uniform as Uniform
