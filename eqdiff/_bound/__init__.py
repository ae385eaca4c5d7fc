from .bound import variational_bound as variational_bound, VariationalBound as VariationalBound
from .continuous import (
    continuous_bound as continuous_bound,
    ContinuousBound as ContinuousBound,
)
from .optimal import (
    analytic_variance as analytic_variance,
    optimal_timesteps as optimal_timesteps,
    optimal_variance as optimal_variance,
)
from .pairwise import pairwise_terms as pairwise_terms, PairwiseTerms as PairwiseTerms
