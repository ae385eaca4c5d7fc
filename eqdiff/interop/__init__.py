"""Models of other projects: their files as denoisers, and their weights, in memory, in our networks."""

from ._diffusers import diffusers_network as diffusers_network
from ._edm import edm_network as edm_network, edm_state_dict as edm_state_dict
from ._flax_file import read_flax as read_flax
from ._guided_diffusion import (
    guided_diffusion_classifier as guided_diffusion_classifier,
    guided_diffusion_state_dict as guided_diffusion_state_dict,
    guided_diffusion_super_resolution as guided_diffusion_super_resolution,
    guided_diffusion_unet as guided_diffusion_unet,
)
from ._improved_diffusion import (
    improved_diffusion_state_dict as improved_diffusion_state_dict,
    improved_diffusion_super_resolution as improved_diffusion_super_resolution,
    improved_diffusion_unet as improved_diffusion_unet,
)
from ._load_diffusers import (
    diffusers_denoiser as diffusers_denoiser,
    load_diffusers as load_diffusers,
)
from ._load_edm import edm_denoiser as edm_denoiser, load_edm as load_edm
from ._load_openai import (
    guided_diffusion_denoiser as guided_diffusion_denoiser,
    guided_diffusion_noisy_classifier as guided_diffusion_noisy_classifier,
    improved_diffusion_denoiser as improved_diffusion_denoiser,
    load_guided_diffusion as load_guided_diffusion,
    load_guided_diffusion_classifier as load_guided_diffusion_classifier,
    load_improved_diffusion as load_improved_diffusion,
)
from ._load_score_sde import (
    load_score_sde as load_score_sde,
    score_sde_denoiser as score_sde_denoiser,
)
from ._score_sde import (
    score_sde_ema as score_sde_ema,
    score_sde_network as score_sde_network,
    score_sde_state_dict as score_sde_state_dict,
)
from ._score_sde_flax import score_sde_flax_network as score_sde_flax_network
from ._torch_file import read_torch as read_torch
