from .bound import (
    continuous_terms as continuous_terms,
    ContinuousTerms as ContinuousTerms,
    l_continuous as l_continuous,
    prior_kl as prior_kl,
    variance_minimising as variance_minimising,
)
from .classifier import classifier_loss as classifier_loss
from .continuous import score_matching as score_matching
from .discrete import (
    bound_term as bound_term,
    l_hybrid as l_hybrid,
    l_simple as l_simple,
    l_vlb as l_vlb,
)
from .implicit import implicit_score_matching as implicit_score_matching
from .weighting import (
    AbstractWeighting as AbstractWeighting,
    EDMWeighting as EDMWeighting,
    LikelihoodWeighting as LikelihoodWeighting,
    MinSNRWeighting as MinSNRWeighting,
    NoiseWeighting as NoiseWeighting,
    SigmoidWeighting as SigmoidWeighting,
    VelocityWeighting as VelocityWeighting,
)
