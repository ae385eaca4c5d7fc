"""Weights of other implementations in our networks, from arrays in memory."""

from ._edm import edm_network as edm_network, edm_state_dict as edm_state_dict
from ._improved_diffusion import (
    improved_diffusion_state_dict as improved_diffusion_state_dict,
    improved_diffusion_super_resolution as improved_diffusion_super_resolution,
    improved_diffusion_unet as improved_diffusion_unet,
)
from ._score_sde import (
    score_sde_ema as score_sde_ema,
    score_sde_network as score_sde_network,
    score_sde_state_dict as score_sde_state_dict,
)
