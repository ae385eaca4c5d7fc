"""score_sde (Song et al. 2021), in PyTorch and in JAX."""

from ._load import load_score_sde as load_score_sde
from ._network import (
    score_sde_network as score_sde_network,
    score_sde_state_dict as score_sde_state_dict,
)
