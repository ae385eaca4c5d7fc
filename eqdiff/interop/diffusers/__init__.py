"""diffusers (Hugging Face): unconditional and class-conditional `UNet2DModel`s."""

from ._load import load_diffusers as load_diffusers
from ._network import diffusers_network as diffusers_network
from ._pipeline import load_diffusers_pipeline as load_diffusers_pipeline
from ._save import save_diffusers as save_diffusers
