"""Networks: Equinox modules that are called as `net(label, x, args, key=key)` with one example."""

from ._mlp import MLP as MLP
from ._presets import unet_cifar10 as unet_cifar10, unet_digits as unet_digits
from ._unet import UNet as UNet
