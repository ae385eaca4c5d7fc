"""Models of other projects: files or weights in memory, as denoisers and as our networks."""

from .diffusers import (
    diffusers_network as diffusers_network,
    load_diffusers as load_diffusers,
    load_diffusers_pipeline as load_diffusers_pipeline,
    save_diffusers as save_diffusers,
)
from .edm import (
    edm_network as edm_network,
    edm_state_dict as edm_state_dict,
    load_edm as load_edm,
)
from .files import read_flax as read_flax, read_torch as read_torch
from .openai import (
    load_guided_diffusion as load_guided_diffusion,
    load_guided_diffusion_classifier as load_guided_diffusion_classifier,
    load_improved_diffusion as load_improved_diffusion,
    openai_classifier as openai_classifier,
    openai_state_dict as openai_state_dict,
    openai_unet as openai_unet,
)
from .score_sde import (
    load_score_sde as load_score_sde,
    score_sde_network as score_sde_network,
    score_sde_state_dict as score_sde_state_dict,
)
