from .continuous import score_matching as score_matching
from .discrete import (
    bound_term as bound_term,
    l_hybrid as l_hybrid,
    l_simple as l_simple,
    l_vlb as l_vlb,
)
from .weighting import (
    AbstractWeighting as AbstractWeighting,
    LikelihoodWeighting as LikelihoodWeighting,
    NoiseWeighting as NoiseWeighting,
)
