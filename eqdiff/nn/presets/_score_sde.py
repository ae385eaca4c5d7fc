"""The networks of score_sde's published configurations, by name.

Data are in [−1, 1] for VP and sub-VP and in [0, 1] for VE, as published; write `centred=True` for a
VE network of data in [−1, 1], whose noise levels are then half as large in units of the data.
"""

from typing import Any

from ..._types import Key
from .._ddpm import DDPM
from .._ncsnpp import NCSNpp
from .._ncsnv2 import NCSNv2


def ddpm_cifar10(*, key: Key, **options: Any) -> DDPM:
    """DDPM for CIFAR-10 (`configs/vp/ddpm/cifar10*`, `configs/subvp/cifar10_ddpm_continuous`): 35.2
    million parameters.

    128 channels, two blocks per level, widths (1, 2, 2, 2), attention at 16×16, dropout 0.1. The
    time input is the index of a schedule of 1000 steps, or $999\\,t$; the output is ε. The 35.7
    million of Ho et al. (2020) have attention after every block on the way up, which the code of
    score_sde has only once per level.

    **Arguments:**

    - `key`: a PRNG key.
    - `options`: of [`eqdiff.nn.DDPM`][]. The VE configuration, `configs/ve/cifar10_ddpm`, is
        `sigma_levels=(0.01, 50.0, 1000), scale_by_sigma=True, centred=False`.

    **Returns:** an [`eqdiff.nn.DDPM`][].
    """
    return DDPM(key=key, **options)


def ddpm_256(*, key: Key, **options: Any) -> DDPM:
    """DDPM for 256×256 images (`configs/vp/ddpm/{bedroom,church,celebahq}`): 112 million
    parameters (114 in Ho et al. 2020, for the same reason as in `ddpm_cifar10`).

    128 channels, two blocks per level, widths (1, 1, 2, 2, 4, 4), attention at 16×16, no dropout.

    **Arguments:**

    - `key`: a PRNG key.
    - `options`: of [`eqdiff.nn.DDPM`][].

    **Returns:** an [`eqdiff.nn.DDPM`][].
    """
    defaults: dict[str, Any] = dict(
        channel_mult=(1, 1, 2, 2, 4, 4), attention_downsamples=(16,), dropout=0.0
    )
    return DDPM(key=key, **(defaults | options))


def ddpmpp_cifar10(*, deep: bool = False, key: Key, **options: Any) -> NCSNpp:
    """DDPM++ for CIFAR-10 (`configs/{vp,subvp}/cifar10_ddpmpp*`): 61.8 million
    parameters, 106.6 where `deep`.

    128 channels, four blocks per level or eight, widths (1, 2, 2, 2), attention at 16×16, BigGAN's
    blocks, neither filters nor pyramids, dropout 0.1. The time input is the index of a schedule of
    1000 steps, or $999\\,t$; the output is ε.

    **Arguments:**

    - `deep`: whether there are eight blocks per level.
    - `key`: a PRNG key.
    - `options`: of [`eqdiff.nn.NCSNpp`][].

    **Returns:** an [`eqdiff.nn.NCSNpp`][].
    """
    defaults: dict[str, Any] = dict(
        num_res_blocks=8 if deep else 4,
        fir_kernel=None,
        progressive_input="none",
        embedding="positional",
        scale_by_sigma=False,
    )
    return NCSNpp(key=key, **(defaults | options))


def ncsnpp_cifar10(*, deep: bool = False, key: Key, **options: Any) -> NCSNpp:
    """NCSN++ for CIFAR-10 (`configs/ve/cifar10_ncsnpp_continuous`, `…_deep_continuous`): 62.8
    million parameters, 107.6 where `deep`.

    128 channels, four blocks per level or eight, widths (1, 2, 2, 2), attention at 16×16, BigGAN's
    blocks, FIR filters, a residual pyramid on the way down, Fourier features, dropout 0.1. The time
    input is log σ, the output the score of data in [0, 1].

    **Arguments:**

    - `deep`: whether there are eight blocks per level.
    - `key`: a PRNG key.
    - `options`: of [`eqdiff.nn.NCSNpp`][]. The discrete configuration, `configs/ve/cifar10_ncsnpp`,
        is `embedding="positional", sigma_levels=(0.01, 50.0, 1000)`; those of VP and sub-VP are
        `embedding="positional", scale_by_sigma=False, centred=True`.

    **Returns:** an [`eqdiff.nn.NCSNpp`][].
    """
    defaults: dict[str, Any] = dict(num_res_blocks=8 if deep else 4, centred=False)
    return NCSNpp(key=key, **(defaults | options))


def ncsnpp_celeba64(*, key: Key, **options: Any) -> NCSNpp:
    """NCSN++ for 64×64 CelebA (`configs/ve/celeba_ncsnpp`): that of CIFAR-10 with sinusoids.

    Attention at 16×16. The time input is log σ, of which it takes the nearest of 1000
    levels from 0.01 to 90; the output is the score of data in [0, 1].

    **Arguments:**

    - `key`: a PRNG key.
    - `options`: of [`eqdiff.nn.NCSNpp`][].

    **Returns:** an [`eqdiff.nn.NCSNpp`][].
    """
    defaults: dict[str, Any] = dict(
        attention_downsamples=(4,),
        embedding="positional",
        sigma_levels=(0.01, 90.0, 1000),
        centred=False,
    )
    return NCSNpp(key=key, **(defaults | options))


_SKIPS: dict[str, Any] = dict(
    progressive="output_skip", progressive_input="input_skip", dropout=0.0, centred=False
)


def ncsnpp_256(*, key: Key, **options: Any) -> NCSNpp:
    """NCSN++ for 256×256 images
    (`configs/ve/{bedroom,church,ffhq_256,celebahq_256}_ncsnpp_continuous`): 65.6 million
    parameters.

    128 channels, two blocks per level, widths (1, 1, 2, 2, 2, 2, 2), attention at 16×16, FIR
    filters, skip pyramids both ways, Fourier features, no dropout. The time input is log σ, the
    output the score of data in [0, 1].

    **Arguments:**

    - `key`: a PRNG key.
    - `options`: of [`eqdiff.nn.NCSNpp`][].

    **Returns:** an [`eqdiff.nn.NCSNpp`][].
    """
    widths: dict[str, Any] = dict(
        num_res_blocks=2, channel_mult=(1, 1, 2, 2, 2, 2, 2), attention_downsamples=(16,)
    )
    return NCSNpp(key=key, **(_SKIPS | widths | options))


def ncsnpp_1024(*, key: Key, **options: Any) -> NCSNpp:
    """NCSN++ for 1024×1024 images (`configs/ve/{celebahq,ffhq}_ncsnpp_continuous`).

    As for 256×256, with 16 channels, one block per level, and widths (1, 2, 4, 8, 16, 32, 32, 32).

    **Arguments:**

    - `key`: a PRNG key.
    - `options`: of [`eqdiff.nn.NCSNpp`][].

    **Returns:** an [`eqdiff.nn.NCSNpp`][].
    """
    widths: dict[str, Any] = dict(
        channels=16,
        num_res_blocks=1,
        channel_mult=(1, 2, 4, 8, 16, 32, 32, 32),
        attention_downsamples=(64,),
    )
    return NCSNpp(key=key, **(_SKIPS | widths | options))


def ncsnv2_64(*, key: Key, **options: Any) -> NCSNv2:
    """NCSNv2 for images up to 64×64 (`configs/ve/ncsnv2/{cifar10,celeba}`).

    Four stages of widths (1, 2, 2, 2) and dilations (1, 1, 2, 4), 128 channels. The time input is
    log σ, the output the score of data in [0, 1].

    **Arguments:**

    - `key`: a PRNG key.
    - `options`: of [`eqdiff.nn.NCSNv2`][].

    **Returns:** an [`eqdiff.nn.NCSNv2`][].
    """
    defaults: dict[str, Any] = dict(centred=False)
    return NCSNv2(key=key, **(defaults | options))


def ncsnv2_128(*, key: Key, **options: Any) -> NCSNv2:
    """NCSNv2 for 128×128 images (`configs/ve/ncsnv2/bedroom`): five stages, of which the third too
    halves the sides.

    **Arguments:**

    - `key`: a PRNG key.
    - `options`: of [`eqdiff.nn.NCSNv2`][].

    **Returns:** an [`eqdiff.nn.NCSNv2`][].
    """
    stages: dict[str, Any] = dict(
        channel_mult=(1, 2, 2, 4, 4), dilations=(1, 1, 1, 2, 4), centred=False
    )
    return NCSNv2(key=key, **(stages | options))
