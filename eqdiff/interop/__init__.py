"""Weights of other implementations in our networks, from arrays in memory."""

from ._improved_diffusion import (
    improved_diffusion_state_dict as improved_diffusion_state_dict,
    improved_diffusion_unet as improved_diffusion_unet,
)
