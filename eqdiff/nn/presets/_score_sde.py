"""The networks of score_sde's published configurations, by name.

Those of VP and sub-VP take the index of a schedule of 1000 steps, or $999\\,t$, and data in
[−1, 1]; their output is ε. Those of VE take log σ and data in [0, 1], as published, and return a
score: they are a [`eqdiff.nn.DividedBySigma`][] of a [`eqdiff.nn.Centred`][] of a
[`eqdiff.nn.UNet`][]. Write `centred=True` for a VE network of data in [−1, 1], whose noise levels
are then half as large in units of the data.
"""

from typing import Any

from ..._types import Key, Network
from .. import embeddings, styles
from .._ends import wrapped
from .._ncsnv2 import NCSNv2
from .._pyramids import InputSkip, OutputSkip
from .._style import Style
from .._time_features import AbstractTime, Fourier, NoiseLevels, SongSinusoids
from ._build import unet


def _network(
    style: Style,
    time: AbstractTime,
    defaults: dict[str, Any],
    centred: bool | None,
    options: dict[str, Any],
    key: Key,
) -> Network:
    # Sinusoids of the time input are VP's, everything else VE's.
    by_sigma = not isinstance(time, SongSinusoids)
    net = unet(style, embeddings.score_sde(time), dict(stem_mult=1) | defaults, options, key)
    centred = not by_sigma if centred is None else centred
    return wrapped(net, centred=centred, by_sigma=by_sigma)


def ddpm_cifar10(
    *,
    time: AbstractTime = SongSinusoids(),
    centred: bool | None = None,
    dropout: float = 0.1,
    key: Key,
    **options: Any,
) -> Network:
    """DDPM for CIFAR-10 (`configs/vp/ddpm/cifar10*`, `configs/subvp/cifar10_ddpm_continuous`): 35.2
    million parameters.

    128 channels, two blocks per level, widths (1, 2, 2, 2), attention at 16×16, dropout 0.1. The
    35.7 million of Ho et al. (2020) have attention after every block on the way up, which the code
    of score_sde has only once per level.

    **Arguments:**

    - `time`: the features of the time input, as for [`eqdiff.nn.embeddings.score_sde`][]; the VE
        configuration, `configs/ve/cifar10_ddpm`, is `NoiseLevels(0.01, 50.0, 1000)`.
    - `centred`: whether data are in [−1, 1]; by default those of VP are.
    - `dropout`: as for [`eqdiff.nn.Style`][].
    - `key`: a PRNG key.
    - `options`: sizes of [`eqdiff.nn.UNetShape`][], and `compute_dtype` and `remat` of
        [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.UNet`][]; with features of log σ (VE) in an [`eqdiff.nn.Centred`][]
    and an [`eqdiff.nn.DividedBySigma`][].

    **Example:**

    ```python
    net = eqd.nn.presets.ddpm_cifar10(key=jax.random.key(0))
    ```
    """
    return _network(styles.ddpm(dropout=dropout), time, {}, centred, options, key)


def ddpm_256(
    *,
    time: AbstractTime = SongSinusoids(),
    centred: bool | None = None,
    dropout: float = 0.0,
    key: Key,
    **options: Any,
) -> Network:
    """DDPM for 256×256 images (`configs/vp/ddpm/{bedroom,church,celebahq}`): 112 million
    parameters (114 in Ho et al. 2020, for the same reason as in `ddpm_cifar10`).

    128 channels, two blocks per level, widths (1, 1, 2, 2, 4, 4), attention at 16×16, no dropout.

    **Arguments:** as for `ddpm_cifar10`.

    **Returns:** an [`eqdiff.nn.UNet`][]; with features of log σ (VE) in an [`eqdiff.nn.Centred`][]
    and an [`eqdiff.nn.DividedBySigma`][].

    **Example:**

    ```python
    net = eqd.nn.presets.ddpm_256(key=jax.random.key(0))
    ```
    """
    defaults = dict(channel_mult=(1, 1, 2, 2, 4, 4), attention_downsamples=(16,))
    return _network(styles.ddpm(dropout=dropout), time, defaults, centred, options, key)


def ddpmpp_cifar10(
    *,
    deep: bool = False,
    time: AbstractTime = SongSinusoids(),
    centred: bool | None = None,
    dropout: float = 0.1,
    key: Key,
    **options: Any,
) -> Network:
    """DDPM++ for CIFAR-10 (`configs/{vp,subvp}/cifar10_ddpmpp*`): 61.8 million
    parameters, 106.6 where `deep`.

    128 channels, four blocks per level or eight, widths (1, 2, 2, 2), attention at 16×16, BigGAN's
    blocks, neither filters nor pyramids, dropout 0.1.

    **Arguments:** as for `ddpm_cifar10`, and

    - `deep`: whether there are eight blocks per level.

    **Returns:** an [`eqdiff.nn.UNet`][]; with features of log σ (VE) in an [`eqdiff.nn.Centred`][]
    and an [`eqdiff.nn.DividedBySigma`][].

    **Example:**

    ```python
    net = eqd.nn.presets.ddpmpp_cifar10(deep=True, key=jax.random.key(0))
    ```
    """
    defaults = dict(num_res_blocks=8 if deep else 4)
    return _network(styles.ddpmpp(dropout=dropout), time, defaults, centred, options, key)


def ncsnpp_cifar10(
    *,
    deep: bool = False,
    time: AbstractTime = Fourier(),
    centred: bool | None = None,
    dropout: float = 0.1,
    key: Key,
    **options: Any,
) -> Network:
    """NCSN++ for CIFAR-10 (`configs/ve/cifar10_ncsnpp_continuous`, `…_deep_continuous`): 62.8
    million parameters, 107.6 where `deep`.

    128 channels, four blocks per level or eight, widths (1, 2, 2, 2), attention at 16×16, BigGAN's
    blocks, FIR filters, a residual pyramid on the way down, Fourier features, dropout 0.1.

    **Arguments:** as for `ddpm_cifar10`, and

    - `deep`: whether there are eight blocks per level.
    - `time`: `NoiseLevels(0.01, 50.0, 1000)` in the discrete configuration,
        `configs/ve/cifar10_ncsnpp`, `SongSinusoids()` in those of VP and sub-VP.

    **Returns:** an [`eqdiff.nn.UNet`][]; with features of log σ (VE) in an [`eqdiff.nn.Centred`][]
    and an [`eqdiff.nn.DividedBySigma`][].

    **Example:**

    ```python
    net = eqd.nn.presets.ncsnpp_cifar10(centred=True, key=jax.random.key(0))
    ```
    """
    defaults = dict(num_res_blocks=8 if deep else 4)
    return _network(styles.ncsnpp(dropout=dropout), time, defaults, centred, options, key)


def ncsnpp_celeba64(
    *,
    time: AbstractTime = NoiseLevels(0.01, 90.0, 1000),
    centred: bool | None = None,
    dropout: float = 0.1,
    key: Key,
    **options: Any,
) -> Network:
    """NCSN++ for 64×64 CelebA (`configs/ve/celeba_ncsnpp`): that of CIFAR-10 with sinusoids.

    Attention at 16×16. Of the time input log σ it takes the nearest of 1000 levels from 0.01 to 90.

    **Arguments:** as for `ddpm_cifar10`.

    **Returns:** an [`eqdiff.nn.UNet`][]; with features of log σ (VE) in an [`eqdiff.nn.Centred`][]
    and an [`eqdiff.nn.DividedBySigma`][].

    **Example:**

    ```python
    net = eqd.nn.presets.ncsnpp_celeba64(key=jax.random.key(0))
    ```
    """
    defaults = dict(num_res_blocks=4, attention_downsamples=(4,))
    return _network(styles.ncsnpp(dropout=dropout), time, defaults, centred, options, key)


def _skips(dropout: float) -> Style:
    kernel = (1, 3, 3, 1)
    return styles.ncsnpp(
        dropout=dropout, input_pyramid=InputSkip(kernel), output_pyramid=OutputSkip(kernel)
    )


def ncsnpp_256(
    *,
    time: AbstractTime = Fourier(),
    centred: bool | None = None,
    dropout: float = 0.0,
    key: Key,
    **options: Any,
) -> Network:
    """NCSN++ for 256×256 images
    (`configs/ve/{bedroom,church,ffhq_256,celebahq_256}_ncsnpp_continuous`): 65.6 million
    parameters.

    128 channels, two blocks per level, widths (1, 1, 2, 2, 2, 2, 2), attention at 16×16, FIR
    filters, skip pyramids both ways, Fourier features, no dropout.

    **Arguments:** as for `ddpm_cifar10`.

    **Returns:** an [`eqdiff.nn.UNet`][]; with features of log σ (VE) in an [`eqdiff.nn.Centred`][]
    and an [`eqdiff.nn.DividedBySigma`][].

    **Example:**

    ```python
    net = eqd.nn.presets.ncsnpp_256(key=jax.random.key(0))
    ```
    """
    defaults = dict(channel_mult=(1, 1, 2, 2, 2, 2, 2), attention_downsamples=(16,))
    return _network(_skips(dropout), time, defaults, centred, options, key)


def ncsnpp_1024(
    *,
    time: AbstractTime = Fourier(),
    centred: bool | None = None,
    dropout: float = 0.0,
    key: Key,
    **options: Any,
) -> Network:
    """NCSN++ for 1024×1024 images (`configs/ve/{celebahq,ffhq}_ncsnpp_continuous`).

    As for 256×256, with 16 channels, one block per level, and widths (1, 2, 4, 8, 16, 32, 32, 32).

    **Arguments:** as for `ddpm_cifar10`.

    **Returns:** an [`eqdiff.nn.UNet`][]; with features of log σ (VE) in an [`eqdiff.nn.Centred`][]
    and an [`eqdiff.nn.DividedBySigma`][].

    **Example:**

    ```python
    net = eqd.nn.presets.ncsnpp_1024(key=jax.random.key(0))
    ```
    """
    defaults = dict(
        channels=16,
        num_res_blocks=1,
        channel_mult=(1, 2, 4, 8, 16, 32, 32, 32),
        attention_downsamples=(64,),
    )
    return _network(_skips(dropout), time, defaults, centred, options, key)


def ncsnv2_64(*, key: Key, **options: Any) -> NCSNv2:
    """NCSNv2 for images up to 64×64 (`configs/ve/ncsnv2/{cifar10,celeba}`).

    Four stages of widths (1, 2, 2, 2) and dilations (1, 1, 2, 4), 128 channels. The time input is
    log σ, the output the score of data in [0, 1].

    **Arguments:**

    - `key`: a PRNG key.
    - `options`: of [`eqdiff.nn.NCSNv2`][].

    **Returns:** an [`eqdiff.nn.NCSNv2`][].

    **Example:**

    ```python
    net = eqd.nn.presets.ncsnv2_64(key=jax.random.key(0))
    ```
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

    **Example:**

    ```python
    net = eqd.nn.presets.ncsnv2_128(key=jax.random.key(0))
    ```
    """
    stages: dict[str, Any] = dict(
        channel_mult=(1, 2, 2, 4, 4), dilations=(1, 1, 1, 2, 4), centred=False
    )
    return NCSNv2(key=key, **(stages | options))
