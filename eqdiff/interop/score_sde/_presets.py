"""The published configurations of score_sde, by name.

Names are those of the files in `configs/` without `.py`, which are also the folders of the
published checkpoints; the few whose folder is called otherwise have both names. Of a configuration
only what a denoiser needs is kept.
"""

import copy
from collections.abc import Mapping
from typing import Any


_MODEL: dict[str, Any] = dict(
    normalization="GroupNorm",
    nonlinearity="swish",
    nf=128,
    ch_mult=(1, 2, 2, 2),
    num_res_blocks=4,
    attn_resolutions=(16,),
    dropout=0.1,
    resamp_with_conv=True,
    conditional=True,
    sigma_min=0.01,
    sigma_max=50,
    num_scales=1000,
    beta_min=0.1,
    beta_max=20.0,
)
_DDPM: dict[str, Any] = _MODEL | dict(name="ddpm", num_res_blocks=2, scale_by_sigma=False)
_NCSNPP: dict[str, Any] = _MODEL | dict(
    name="ncsnpp",
    scale_by_sigma=True,
    fir=True,
    fir_kernel=(1, 3, 3, 1),
    skip_rescale=True,
    resblock_type="biggan",
    progressive="none",
    progressive_input="residual",
    progressive_combine="sum",
    init_scale=0.0,
    embedding_type="fourier",
    fourier_scale=16,
)
# Under VP and sub-VP the time is embedded by sinusoids, and the network predicts noise.
_POSITIONAL: dict[str, Any] = dict(scale_by_sigma=False, embedding_type="positional")
_DDPMPP: dict[str, Any] = _NCSNPP | _POSITIONAL | dict(fir=False, progressive_input="none")
_SKIPS: dict[str, Any] = _NCSNPP | dict(
    num_res_blocks=2,
    ch_mult=(1, 1, 2, 2, 2, 2, 2),
    dropout=0.0,
    progressive="output_skip",
    progressive_input="input_skip",
    num_scales=2000,
)
_HUGE: dict[str, Any] = _SKIPS | dict(
    nf=16, num_res_blocks=1, ch_mult=(1, 2, 4, 8, 16, 32, 32, 32), sigma_max=1348
)
_DDPM256: dict[str, Any] = _DDPM | dict(ch_mult=(1, 1, 2, 2, 4, 4), dropout=0.0)


def _preset(
    sde: str, continuous: bool, model: Mapping[str, Any], image_size: int = 32
) -> dict[str, Any]:
    return {
        "training": {"sde": sde, "continuous": continuous},
        # Only VE's data are not moved to [−1, 1].
        "data": {"image_size": image_size, "num_channels": 3, "centered": sde != "vesde"},
        "model": dict(model),
    }


def _deep(model: Mapping[str, Any]) -> dict[str, Any]:
    return dict(model) | dict(num_res_blocks=8)


def _presets() -> dict[str, dict[str, Any]]:
    vp, sub, ve = "vpsde", "subvpsde", "vesde"
    table = {
        "vp/ddpm/cifar10": _preset(vp, False, _DDPM),
        "vp/ddpm/cifar10_unconditional": _preset(vp, False, _DDPM | dict(conditional=False)),
        "vp/ddpm/cifar10_continuous": _preset(vp, True, _DDPM),
        "subvp/cifar10_ddpm_continuous": _preset(sub, True, _DDPM),
        "vp/cifar10_ddpmpp": _preset(vp, False, _DDPMPP),
        "vp/cifar10_ncsnpp": _preset(vp, False, _NCSNPP | _POSITIONAL),
        "ve/cifar10_ddpm": _preset(ve, False, _DDPM | dict(scale_by_sigma=True)),
        "ve/cifar10_ncsnpp": _preset(ve, False, _NCSNPP | dict(embedding_type="positional")),
        "ve/cifar10_ncsnpp_continuous": _preset(ve, True, _NCSNPP),
        "ve/cifar10_ncsnpp_deep_continuous": _preset(ve, True, _deep(_NCSNPP)),
        "ve/celeba_ncsnpp": _preset(
            ve, False, _NCSNPP | dict(embedding_type="positional", sigma_max=90.0), 64
        ),
    }
    for folder, sde in (("vp", vp), ("subvp", sub)):
        for kind, model in (("ddpmpp", _DDPMPP), ("ncsnpp", _NCSNPP | _POSITIONAL)):
            name = f"{folder}/cifar10_{kind}"
            table[f"{name}_continuous"] = _preset(sde, True, model)
            table[f"{name}_deep_continuous"] = _preset(sde, True, _deep(model))
    for data in ("bedroom", "church", "celebahq"):
        table[f"vp/ddpm/{data}"] = _preset(vp, False, _DDPM256, 256)
    for data, high in (("bedroom", 378), ("church", 380), ("ffhq_256", 348), ("celebahq_256", 348)):
        model = _SKIPS | dict(sigma_max=high)
        table[f"ve/{data}_ncsnpp_continuous"] = _preset(ve, True, model, 256)
    for data in ("celebahq", "ffhq"):
        table[f"ve/{data}_ncsnpp_continuous"] = _preset(ve, True, _HUGE, 1024)
    for data, size, high, levels in (
        ("cifar10", 32, 50, 232),
        ("celeba", 64, 90.0, 500),
        ("bedroom", 128, 190, 1086),
    ):
        name = "ncsnv2_128" if size == 128 else "ncsnv2_64"
        model = dict(name=name, normalization="InstanceNorm++", nonlinearity="elu", nf=128)
        model |= dict(sigma_min=0.01, sigma_max=high, num_scales=levels)
        table[f"ve/ncsnv2/{data}"] = _preset(ve, False, model | dict(scale_by_sigma=True), size)
    # The folders of the published checkpoints, where they differ.
    table["vp/cifar10_ddpm"] = table["vp/ddpm/cifar10"]
    table["vp/cifar10_ddpm_continuous"] = table["vp/ddpm/cifar10_continuous"]
    table["ve/ffhq_1024_ncsnpp_continuous"] = table["ve/ffhq_ncsnpp_continuous"]
    return table


SCORE_SDE_PRESETS = _presets()


def score_sde_preset(name: str) -> dict[str, Any]:
    """A published configuration.

    **Raises:** `ValueError` for a name that does not exist.
    """
    if name not in SCORE_SDE_PRESETS:
        raise ValueError(
            f"no published configuration of score_sde is called {name!r}; known are "
            f"{', '.join(sorted(SCORE_SDE_PRESETS))}."
        )
    return copy.deepcopy(SCORE_SDE_PRESETS[name])
