r"""The scheduler's configuration, as a process and what the network's output means.

What its words are called here:

- `beta_schedule` and its ends, or `trained_betas`: a [`eqdiff.Schedule`][] of these rates, in
  float64 (diffusers' are float32), whose `c_noise` are the steps $0, \dots, T-1$; with
  `rescale_betas_zero_snr` its [`eqdiff.zero_terminal_snr`][];
- `prediction_type`: `epsilon`, `sample` and `v_prediction` are [`eqdiff.PredictNoise`][],
  [`eqdiff.PredictData`][] and [`eqdiff.PredictVelocity`][];
- `variance_type`: [`eqdiff.FixedSmall`][], [`eqdiff.FixedLarge`][] or [`eqdiff.LearnedRange`][].

The rest is about sampling (`_pipeline.py`), but for options of newer schedulers that change the
process or the network's time input, of which only the value that does not is read.
"""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..._parameterisation import (
    AbstractParameterisation,
    PredictData,
    PredictNoise,
    PredictVelocity,
)
from ..._process import cosine_schedule, Schedule, zero_terminal_snr
from ..._shown import shortened, shown
from ..._variance import AbstractVariance, FixedLarge, FixedSmall, LearnedRange
from .._reading import number_of_steps


_PARAMETERISATIONS: dict[str, AbstractParameterisation] = {
    "epsilon": PredictNoise(),
    "sample": PredictData(),
    "v_prediction": PredictVelocity(),
}
_VARIANCES: dict[str, AbstractVariance] = {
    "fixed_small": FixedSmall(),
    "fixed_small_log": FixedSmall(),
    "fixed_large": FixedLarge(),
    "fixed_large_log": FixedLarge(),
    "learned_range": LearnedRange(),
}
_LATENT = dict(beta_start=0.00085, beta_end=0.012)
# Schedulers of a discrete schedule by those of their defaults that are not DDPMScheduler's.
_PLAIN = (
    "DDPM DDIM DDPMParallel DDIMParallel DDIMInverse PNDM DPMSolverMultistep DPMSolverSinglestep "
    "DPMSolverMultistepInverse DEISMultistep UniPCMultistep SASolver EulerDiscrete "
    "EulerAncestralDiscrete LMSDiscrete RePaint"
)
_FEWER = "HeunDiscrete KDPM2Discrete KDPM2AncestralDiscrete DPMSolverSDE"
_ROOT = dict(_LATENT, beta_schedule="scaled_linear")
_CLASSES: dict[str, dict[str, Any]] = {
    **{f"{name}Scheduler": {} for name in _PLAIN.split()},
    **{f"{name}Scheduler": _LATENT for name in _FEWER.split()},
    **{f"{name}Scheduler": _ROOT for name in ("LCM", "TCD")},
    "UnCLIPScheduler": dict(beta_schedule="squaredcos_cap_v2"),
}
_DEFAULTS: dict[str, Any] = dict(
    num_train_timesteps=1000,
    beta_start=1e-4,
    beta_end=0.02,
    beta_schedule="linear",
    trained_betas=None,
    prediction_type="epsilon",
    # Before version 0.10.
    predict_epsilon=True,
    variance_type="fixed_small",
    rescale_betas_zero_snr=False,
)
# Options of which only these values leave the process and the time input as they are.
_FIXED: dict[str, tuple[Any, ...]] = dict(
    timestep_type=("discrete", None),
    use_flow_sigmas=(False, None),
    use_dynamic_shifting=(False, None),
    shift_terminal=(None,),
    snr_shift_scale=(None, 1),
)
# What concerns sampling alone.
_SAMPLING = frozenset(
    "algorithm_type clip_sample clip_sample_range corrector_order disable_corrector "
    "dynamic_thresholding_ratio eta euler_at_final final_sigmas_type flow_shift interpolation_type "
    "lambda_min_clipped lower_order_final noise_sampler_seed original_inference_steps predict_x0 "
    "predictor_order sample_max_value set_alpha_to_one sigma_max sigma_min skip_prk_steps "
    "solver_order solver_p solver_type steps_offset tau_func tensor_format thresholding "
    "time_shift_type timestep_scaling timestep_spacing timesteps use_beta_sigmas "
    "use_exponential_sigmas use_karras_sigmas use_lu_lambdas".split()
)


class Meaning(NamedTuple):
    """What a scheduler says of the network it was trained with."""

    schedule: Schedule
    parameterisation: AbstractParameterisation
    variance: AbstractVariance


def class_name(config: Mapping[str, Any]) -> str:
    """The scheduler's class; `DDPMScheduler` if the configuration does not say."""
    name = config.get("_class_name", "DDPMScheduler")
    return shortened(name, 80) if isinstance(name, str) else shown(name)


def meaning(config: Mapping[str, Any]) -> Meaning:
    """The schedule and what the network predicts on it.

    **Raises:** `ValueError` for a scheduler or an option that eqdiff does not have, by name.
    """
    options = _read(config)
    if options["predict_epsilon"] not in (True, False, None):
        raise ValueError(f"the scheduler has predict_epsilon={shown(options['predict_epsilon'])}.")
    if options["predict_epsilon"] is False:
        if config.get("prediction_type", "sample") != "sample":
            raise ValueError(
                "the scheduler has predict_epsilon=False, which is prediction_type='sample', and "
                f"prediction_type={shown(config['prediction_type'])}: give it one of them."
            )
        options = {**options, "prediction_type": "sample"}
    # Null in schedulers that have no noise of their own.
    variance = options["variance_type"] or _DEFAULTS["variance_type"]
    return Meaning(
        schedule(options),
        one_of(options, "prediction_type", _PARAMETERISATIONS),
        one_of({"variance_type": variance}, "variance_type", _VARIANCES),
    )


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    name = class_name(config)
    if name not in _CLASSES:
        raise ValueError(
            f"the scheduler is a {name}, which has no rates β known here: expected one of a "
            "discrete schedule, such as DDPMScheduler."
        )
    given = {k: v for k, v in config.items() if not k.startswith("_") and k not in _SAMPLING}
    problems = [
        f"{key}={shown(given[key])}, expected {shown(allowed[0])}"
        for key, allowed in _FIXED.items()
        if key in given and given[key] not in allowed
    ]
    if problems:
        raise ValueError(f"the scheduler has {'; '.join(problems)}: eqdiff has no such process.")
    unknown = sorted(set(given) - set(_DEFAULTS) - set(_FIXED))
    refused = [key for key in unknown if given[key] is not None]
    if refused:
        raise ValueError(
            f"the {name} has the unknown options {shown(refused, 300)}. If you know that they "
            "concern sampling alone, give a scheduler without them."
        )
    if unknown:
        warnings.warn(
            f"options of {name} that are not known here, but null, are not read: "
            f"{shown(unknown, 300)}.",
            stacklevel=2,
        )
    return _DEFAULTS | _CLASSES[name] | {k: given[k] for k in given if k in _DEFAULTS}


def schedule(options: Mapping[str, Any]) -> Schedule:
    """The schedule of options that were read."""
    rates = betas(options)
    plain = Schedule(rates, c_noise=np.arange(rates.size))
    return zero_terminal_snr(plain) if options["rescale_betas_zero_snr"] else plain


def betas(options: Mapping[str, Any]) -> np.ndarray:
    """The rates β."""
    if options["trained_betas"] is not None:
        return np.asarray(options["trained_betas"], np.float64)
    steps = number_of_steps(options["num_train_timesteps"], "num_train_timesteps")
    low, high = options["beta_start"], options["beta_end"]
    ramp = np.linspace(0, 1, steps)
    kinds = {
        "linear": lambda: low + (high - low) * ramp,
        "scaled_linear": lambda: (low**0.5 + (high**0.5 - low**0.5) * ramp) ** 2,
        "squaredcos_cap_v2": lambda: cosine_schedule(steps).betas,
        "sigmoid": lambda: low + (high - low) / (1 + np.exp(-(12 * ramp - 6))),
    }
    return one_of(options, "beta_schedule", kinds)()


def one_of(options: Mapping[str, Any], name: str, table: Mapping[str, Any]) -> Any:
    """The entry of a table that an option names.

    **Raises:** `ValueError` for another value.
    """
    value = options[name]
    if not isinstance(value, str) or value not in table:
        raise ValueError(
            f"the scheduler has {name}={shown(value)}, expected one of {sorted(table)}."
        )
    return table[value]
