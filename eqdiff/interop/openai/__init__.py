"""improved-diffusion and guided-diffusion (OpenAI), which share networks and scripts."""

from ._load import (
    load_guided_diffusion as load_guided_diffusion,
    load_guided_diffusion_classifier as load_guided_diffusion_classifier,
    load_improved_diffusion as load_improved_diffusion,
)
from ._network import (
    openai_classifier as openai_classifier,
    openai_state_dict as openai_state_dict,
    openai_unet as openai_unet,
)
