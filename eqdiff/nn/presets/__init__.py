"""Networks of published experiments, by name.

Names start with the project that published them: `iddpm_` (improved-diffusion), `adm_`
(guided-diffusion) and `edm_` have its name, `ddpm_`, `ddpmpp_`, `ncsnpp_` and `ncsnv2_` are
score_sde's. Every function passes further arguments on to the network, so that any can be changed.
"""

from ._adm import (
    adm_classifier as adm_classifier,
    adm_imagenet as adm_imagenet,
    adm_lsun as adm_lsun,
    adm_upsampler as adm_upsampler,
)
from ._dit import dit as dit
from ._edm import (
    edm_adm_imagenet64 as edm_adm_imagenet64,
    edm_ddpmpp_64 as edm_ddpmpp_64,
    edm_ddpmpp_cifar10 as edm_ddpmpp_cifar10,
    edm_ncsnpp_64 as edm_ncsnpp_64,
    edm_ncsnpp_cifar10 as edm_ncsnpp_cifar10,
)
from ._iddpm import (
    iddpm_cifar10 as iddpm_cifar10,
    iddpm_digits as iddpm_digits,
    iddpm_imagenet64 as iddpm_imagenet64,
    iddpm_lsun256 as iddpm_lsun256,
    iddpm_upsampler256 as iddpm_upsampler256,
)
from ._score_sde import (
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
