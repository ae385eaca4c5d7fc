"""Networks: Equinox modules that are called as `net(label, x, args, key=key)` with one example."""

from ._classifier import UNetClassifier as UNetClassifier
from ._condition import Conditions as Conditions
from ._ddpm import DDPM as DDPM
from ._dhariwal_unet import DhariwalUNet as DhariwalUNet
from ._dit import DiT as DiT
from ._mlp import MLP as MLP
from ._ncsnpp import NCSNpp as NCSNpp
from ._ncsnv2 import NCSNv2 as NCSNv2
from ._pool import (
    AttentionPool as AttentionPool,
    AveragePool as AveragePool,
    SpatialPool as SpatialPool,
)
from ._presets import (
    unet_cifar10 as unet_cifar10,
    unet_digits as unet_digits,
    unet_imagenet64 as unet_imagenet64,
    unet_lsun256 as unet_lsun256,
    unet_upsampler256 as unet_upsampler256,
)
from ._presets_edm import (
    dit as dit,
    edm_adm_imagenet64 as edm_adm_imagenet64,
    edm_ddpmpp_64 as edm_ddpmpp_64,
    edm_ddpmpp_cifar10 as edm_ddpmpp_cifar10,
    edm_ncsnpp_64 as edm_ncsnpp_64,
    edm_ncsnpp_cifar10 as edm_ncsnpp_cifar10,
)
from ._presets_guided import (
    adm_classifier as adm_classifier,
    adm_imagenet as adm_imagenet,
    adm_lsun as adm_lsun,
    adm_upsampler as adm_upsampler,
)
from ._presets_score import (
    ddpm_256 as ddpm_256,
    ddpm_cifar10 as ddpm_cifar10,
    ddpmpp_cifar10 as ddpmpp_cifar10,
    ncsnpp_256 as ncsnpp_256,
    ncsnpp_1024 as ncsnpp_1024,
    ncsnpp_celeba64 as ncsnpp_celeba64,
    ncsnpp_cifar10 as ncsnpp_cifar10,
    ncsnv2_64 as ncsnv2_64,
    ncsnv2_128 as ncsnv2_128,
)
from ._song_unet import SongUNet as SongUNet
from ._super_resolution import (
    area_downsample as area_downsample,
    SuperResolution as SuperResolution,
)
from ._unet import UNet as UNet
