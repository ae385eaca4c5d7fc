"""Diffusion models in JAX: Improved DDPM and score-based SDEs as Equinox modules and Diffrax solves."""

import importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

from . import nn as nn
from ._bound import (
    estimate_variational_bound as estimate_variational_bound,
    variational_bound as variational_bound,
    VariationalBound as VariationalBound,
)
from ._denoiser import (
    AbstractDenoiser as AbstractDenoiser,
    Denoiser as Denoiser,
    Estimate as Estimate,
    score as score,
)
from ._dequantise import (
    AbstractDequantisation as AbstractDequantisation,
    GaussianDequantisation as GaussianDequantisation,
    UniformDequantisation as UniformDequantisation,
)
from ._generate import generate as generate
from ._guidance import Clip as Clip
from ._likelihood import (
    bits_per_dim as bits_per_dim,
    BitsPerDim as BitsPerDim,
    decode as decode,
    encode as encode,
    log_likelihood as log_likelihood,
    LogLikelihood as LogLikelihood,
)
from ._loss import (
    AbstractWeighting as AbstractWeighting,
    bound_term as bound_term,
    l_hybrid as l_hybrid,
    l_simple as l_simple,
    l_vlb as l_vlb,
    LikelihoodWeighting as LikelihoodWeighting,
    NoiseWeighting as NoiseWeighting,
    score_matching as score_matching,
)
from ._misc import (
    discretised_gaussian_log_likelihood as discretised_gaussian_log_likelihood,
    discretised_gaussian_log_likelihood_exact as discretised_gaussian_log_likelihood_exact,
)
from ._oracle import (
    GaussianDenoiser as GaussianDenoiser,
    GaussianMixtureDenoiser as GaussianMixtureDenoiser,
)
from ._precondition import (
    AbstractParameterisation as AbstractParameterisation,
    Data as Data,
    Noise as Noise,
    PreviousMean as PreviousMean,
    Score as Score,
    Velocity as Velocity,
)
from ._predict import (
    predict as predict,
    predict_from_noise as predict_from_noise,
    Prediction as Prediction,
    stop_mean as stop_mean,
)
from ._process import (
    AbstractProcess as AbstractProcess,
    AbstractSDE as AbstractSDE,
    SubVPSDE as SubVPSDE,
    VESDE as VESDE,
    VPSDE as VPSDE,
)
from ._sampler import (
    AbstractChain as AbstractChain,
    AbstractSampler as AbstractSampler,
    Ancestral as Ancestral,
    DDIM as DDIM,
    ProbabilityFlow as ProbabilityFlow,
    ReverseSDE as ReverseSDE,
    Trajectory as Trajectory,
)
from ._schedule import (
    alpha_bar_schedule as alpha_bar_schedule,
    ContinuousSchedule as ContinuousSchedule,
    cosine_schedule as cosine_schedule,
    ddim_timesteps as ddim_timesteps,
    discretise as discretise,
    linear_schedule as linear_schedule,
    respace as respace,
    Schedule as Schedule,
    section_timesteps as section_timesteps,
)
from ._serialise import load_model as load_model, save_model as save_model
from ._term import (
    augmented_flow as augmented_flow,
    forward_sde as forward_sde,
    probability_flow as probability_flow,
    reverse_sde as reverse_sde,
)
from ._timesteps import (
    AbstractTimesteps as AbstractTimesteps,
    LowDiscrepancy as LowDiscrepancy,
    Uniform as Uniform,
)
from ._trace import (
    AbstractTrace as AbstractTrace,
    ExactTrace as ExactTrace,
    Hutchinson as Hutchinson,
    rademacher as rademacher,
)
from ._variance import (
    AbstractVariance as AbstractVariance,
    FixedLarge as FixedLarge,
    FixedSmall as FixedSmall,
    Learned as Learned,
    LearnedRange as LearnedRange,
)


if TYPE_CHECKING:
    from . import data as data, interop as interop, metrics as metrics, train as train


__version__ = _version("eqdiff")

# Namespaces that need an extra are imported on first use (PEP 562), so that the core alone imports.
_LAZY = ("data", "interop", "metrics", "train")


def __getattr__(name: str):
    if name in _LAZY:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'eqdiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
