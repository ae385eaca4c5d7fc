r"""Files of EDM, as denoisers.

NVIDIA's files are pickles of whole objects: for each module the source of its class, the arguments
it was made with, and its attributes, parameters among them. The source is never looked at: class
names, arguments and parameters suffice.

The four preconditioners
$D(y; \sigma) = c_\text{skip} y + c_\text{out} F(c_\text{in} y; c_\text{noise})$, of
$y = x/\alpha$, are

| there | process | parameterisation | $c_\text{noise}$ |
|---|---|---|---|
| `EDMPrecond` | [`eqdiff.EDMSDE`][] | [`eqdiff.EDMPreconditioning`][] | $\frac14\log\sigma$ |
| `VPPrecond` | [`eqdiff.VPSDE`][] | [`eqdiff.PredictNoise`][] | $(M-1)\,t$ |
| `VEPrecond` | [`eqdiff.EDMSDE`][] | [`eqdiff.PredictNoise`][] | $\log(\sigma/2)$ |
| `iDDPMPrecond` | the cosine schedule of $M$ steps | [`eqdiff.PredictNoise`][] | the step |

VE's network returns *minus* the noise, $D = y + \sigma F$; its last convolution is negated here.
(Its $F/\sigma$ is the score.)
"""

import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ..._denoiser import Denoiser
from ..._parameterisation import EDMPreconditioning, PredictNoise
from ..._process import alpha_bar_schedule, EDMSDE, LogNoise, ScaledTime, Schedule, VPSDE
from ..._shown import shortened
from ..._variance import LearnedRange
from ...nn._unet import UNet
from .._reading import number_of_steps, reading
from ..files import Given, name_of
from ._file import read_edm
from ._network import edm_network


# What a preconditioner is made with in addition to its network, and the official defaults.
_COMMON = ("img_resolution", "img_channels", "label_dim", "use_fp16", "model_type")
_DEFAULTS: dict[str, dict[str, Any]] = {
    "VPPrecond": dict(beta_d=19.9, beta_min=0.1, M=1000, epsilon_t=1e-5, model_type="SongUNet"),
    "VEPrecond": dict(sigma_min=0.02, sigma_max=100, model_type="SongUNet"),
    "iDDPMPrecond": dict(C_1=0.001, C_2=0.008, M=1000, model_type="DhariwalUNet"),
    "EDMPrecond": dict(sigma_min=0, sigma_max=math.inf, sigma_data=0.5, model_type="DhariwalUNet"),
}
# The paper's range of noise levels, where a preconditioner does not have one.
_LOWEST, _HIGHEST = 0.002, 80.0


def _edm(options: Mapping[str, Any], net: Any) -> Denoiser:
    low, high = float(options["sigma_min"]), float(options["sigma_max"])
    process = EDMSDE(t0=low or _LOWEST, t1=high if math.isfinite(high) else _HIGHEST)
    return Denoiser(net, process, EDMPreconditioning(float(options["sigma_data"])))


def _vp(options: Mapping[str, Any], net: Any) -> Denoiser:
    low = float(options["beta_min"])
    process = VPSDE(low, low + float(options["beta_d"]), t0=float(options["epsilon_t"]))
    steps = number_of_steps(options["M"], "M")
    c_noise = None if steps == 1000 else ScaledTime(float(steps - 1))
    return Denoiser(net, process, PredictNoise(), c_noise=c_noise)


def _ve(options: Mapping[str, Any], net: Any) -> Denoiser:
    process = EDMSDE(t0=float(options["sigma_min"]), t1=float(options["sigma_max"]))
    return Denoiser(_negated(net), process, PredictNoise(), c_noise=LogNoise(0.5))


def _iddpm(options: Mapping[str, Any], net: Any) -> Denoiser:
    steps, offset = number_of_steps(options["M"], "M"), float(options["C_2"])

    def alpha_bar(u: float) -> float:
        # The official sin² runs from noise to data.
        return math.sin(0.5 * math.pi * (1 - u) / (1 + offset)) ** 2

    betas = alpha_bar_schedule(alpha_bar, steps, max_beta=1 - float(options["C_1"])).betas
    process = Schedule(betas, c_noise=np.arange(steps))
    return Denoiser(net, process, PredictNoise(), variance=LearnedRange())


_PRECONDITIONERS = {"EDMPrecond": _edm, "VPPrecond": _vp, "VEPrecond": _ve, "iDDPMPrecond": _iddpm}


def _negated(net: UNet) -> UNet:
    """−F, by the last convolution; with a skip pyramid on the way up F is a sum of several."""

    def last(net: Any) -> list[Any]:
        body = net.body
        heads = [body.out] if body.out is not None else [l.pyramid.head for l in body.decoder]
        return [array for head in heads for array in (head.conv.weight, head.conv.bias)]

    return eqx.tree_at(last, net, replace_fn=lambda array: -array)


def load_edm(
    weights: Given,
    config: Mapping[str, Any] | None = None,
    *,
    precond: str | None = None,
    compute_dtype: Any = jnp.float32,
) -> Denoiser:
    r"""Makes a denoiser of one of EDM's preconditioned networks: of a file, its moving average.

    The code inside a file is not run, and neither EDM nor PyTorch is needed.

    **Arguments:**

    - `weights`: the path of a `.pkl`: published, or a `network-snapshot-*.pkl` of a run; or a state
        dict in memory, official names and arrays, of the preconditioned network or the one inside.
    - `config`: the keyword arguments of the preconditioner, those of its network among them; only
        for a state dict, or for a file that does not record them.
    - `precond`: its class: `"EDMPrecond"` (the default for a state dict), `"VPPrecond"`,
        `"VEPrecond"` or `"iDDPMPrecond"`. A file says it.
    - `compute_dtype`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.Denoiser`][] on the process of the preconditioner. On a VP process and
    a schedule it takes $x = \alpha y$, where EDM's takes $y$. Where the network has classes, `args`
    is one; where it was trained with augmentations, none are applied.

    **Raises:** `FileNotFoundError`; `ValueError` for a truncated or damaged file, for one that asks
    for anything but modules, tensors and plain data (with its name; nothing is executed), for
    another class, arguments that are missing or unknown, and weights that do not fit, by name.

    **Example:**

    ```python
    denoiser = eqd.interop.load_edm("edm-cifar10-32x32-cond-vp.pkl")
    x1 = denoiser.process.prior_sample((3, 32, 32), key=jax.random.key(0))
    x0 = eqd.StochasticHeun(18)(denoiser, x1, 3, key=jax.random.key(1))  # class 3
    ```
    """
    source = name_of(weights)
    with reading(source):
        state, recorded = weights, None
        if not isinstance(weights, Mapping):
            module = read_edm(weights)
            if module.class_name not in _PRECONDITIONERS:
                raise ValueError(
                    f"{source} holds a {shortened(module.class_name, 80)}, expected one of EDM's "
                    f"preconditioners, {sorted(_PRECONDITIONERS)}."
                )
            if precond not in (None, module.class_name):
                raise ValueError(f"{source} holds a {module.class_name}, got precond={precond!r}.")
            precond, state, recorded = module.class_name, module.state_dict, module.init_kwargs
        config = recorded if config is None else config
        if config is None:
            raise ValueError(
                f"{source} does not record the arguments of its network. Give them: "
                "load_edm(weights, config), with those that its preconditioner was made with "
                "(init_kwargs)."
            )
        return _denoiser(state, config, precond or "EDMPrecond", compute_dtype)


def _denoiser(state: Any, config: Mapping[str, Any], precond: str, compute_dtype: Any) -> Denoiser:
    if precond not in _PRECONDITIONERS:
        raise ValueError(f"precond is one of {sorted(_PRECONDITIONERS)}, got {precond!r}.")
    own = (*_COMMON, *_DEFAULTS[precond])
    options = _DEFAULTS[precond] | {k: v for k, v in config.items() if k in own}
    missing = [name for name in ("img_resolution", "img_channels") if name not in options]
    if missing:
        raise ValueError(f"config of an {precond} lacks {', '.join(missing)}.")
    channels = options["img_channels"]
    network = {k: v for k, v in config.items() if k not in own}
    network |= dict(
        model_type=options["model_type"],
        img_resolution=options["img_resolution"],
        in_channels=channels,
        out_channels=2 * channels if precond == "iDDPMPrecond" else channels,
        label_dim=options.get("label_dim", 0),
    )
    # iDDPM's table of noise levels is a buffer, which the schedule makes anew.
    state = {k: v for k, v in state.items() if k != "u"}
    net = edm_network(state, network, compute_dtype=compute_dtype)
    return _PRECONDITIONERS[precond](options, net)
