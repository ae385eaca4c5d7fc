from .estimate import (
    BoundEstimate as BoundEstimate,
    estimate_variational_bound as estimate_variational_bound,
)
from .optimal import (
    analytic_variance as analytic_variance,
    optimal_timesteps as optimal_timesteps,
    optimal_variance as optimal_variance,
)
from .pairwise import pairwise_terms as pairwise_terms, PairwiseTerms as PairwiseTerms
from .term_by_term import (
    variational_bound as variational_bound,
    VariationalBound as VariationalBound,
)
