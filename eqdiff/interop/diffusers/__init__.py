"""diffusers (Hugging Face): unconditional and class-conditional `UNet2DModel`s."""

from ._load import load_diffusers as load_diffusers
from ._network import diffusers_network as diffusers_network
