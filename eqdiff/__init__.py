"""Diffusion models in JAX.

Improved DDPM and score-based SDEs as Equinox modules and Diffrax solves.
"""

import importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

from . import nn as nn, operators as operators, terms as terms
from ._analytic import (
    GaussianDenoiser as GaussianDenoiser,
    GaussianMixtureDenoiser as GaussianMixtureDenoiser,
)
from ._bound import (
    analytic_variance as analytic_variance,
    continuous_bound as continuous_bound,
    ContinuousBound as ContinuousBound,
    optimal_timesteps as optimal_timesteps,
    optimal_variance as optimal_variance,
    pairwise_terms as pairwise_terms,
    PairwiseTerms as PairwiseTerms,
    variational_bound as variational_bound,
    VariationalBound as VariationalBound,
)
from ._deferred import unchecked as unchecked
from ._denoiser import (
    AbstractDenoiser as AbstractDenoiser,
    AbstractWrapper as AbstractWrapper,
    Denoiser as Denoiser,
    Estimate as Estimate,
    on as on,
    score as score,
)
from ._failures import FailedExamples as FailedExamples
from ._gaussian import (
    discretised_gaussian_log_likelihood as discretised_gaussian_log_likelihood,
    discretised_gaussian_log_likelihood_exact as discretised_gaussian_log_likelihood_exact,
    grid_gaussian_log_likelihood as grid_gaussian_log_likelihood,
)
from ._guidance import (
    AutoGuidance as AutoGuidance,
    Batched as Batched,
    Classifier as Classifier,
    ClassifierFree as ClassifierFree,
    ClassifierGuidance as ClassifierGuidance,
    Clip as Clip,
    ClipDataAlone as ClipDataAlone,
    DynamicThreshold as DynamicThreshold,
    FixedArgs as FixedArgs,
    GuidanceInterval as GuidanceInterval,
    IsotropicCovariance as IsotropicCovariance,
    JacobianCovariance as JacobianCovariance,
    MeanShift as MeanShift,
    PosteriorGuidance as PosteriorGuidance,
    ProjectedClassifierFree as ProjectedClassifierFree,
    RescaledClassifierFree as RescaledClassifierFree,
    ZeroCovariance as ZeroCovariance,
    ZeroStarClassifierFree as ZeroStarClassifierFree,
)
from ._likelihood import (
    AbstractDequantisation as AbstractDequantisation,
    bits_per_dim as bits_per_dim,
    BitsPerDim as BitsPerDim,
    GaussianDequantisation as GaussianDequantisation,
    log_likelihood as log_likelihood,
    LogisticNoise as LogisticNoise,
    LogLikelihood as LogLikelihood,
    slerp as slerp,
    TruncatedNormalDequantisation as TruncatedNormalDequantisation,
    UniformDequantisation as UniformDequantisation,
    VariationalDequantisation as VariationalDequantisation,
)
from ._loss import (
    AbstractWeighting as AbstractWeighting,
    bound_term as bound_term,
    classifier_loss as classifier_loss,
    continuous_terms as continuous_terms,
    ContinuousTerms as ContinuousTerms,
    EDMWeighting as EDMWeighting,
    implicit_score_matching as implicit_score_matching,
    l_continuous as l_continuous,
    l_hybrid as l_hybrid,
    l_simple as l_simple,
    l_vlb as l_vlb,
    LikelihoodWeighting as LikelihoodWeighting,
    MinSNRWeighting as MinSNRWeighting,
    NoiseWeighting as NoiseWeighting,
    score_matching as score_matching,
    SigmoidWeighting as SigmoidWeighting,
    variance_minimising as variance_minimising,
    VelocityWeighting as VelocityWeighting,
)
from ._map import (
    generate as generate,
    generate_to as generate_to,
    map_examples as map_examples,
)
from ._measurement import (
    AbstractMeasurementNoise as AbstractMeasurementNoise,
    CorrelatedNoise as CorrelatedNoise,
    GaussianNoise as GaussianNoise,
    Linearised as Linearised,
    Measurement as Measurement,
    PoissonNoise as PoissonNoise,
)
from ._padding import (
    AbstractPadding as AbstractPadding,
    LatLonPadding as LatLonPadding,
    MixedPadding as MixedPadding,
    PeriodicPadding as PeriodicPadding,
    ReflectingPadding as ReflectingPadding,
    ZeroPadding as ZeroPadding,
)
from ._parameterisation import (
    AbstractParameterisation as AbstractParameterisation,
    EDMPreconditioning as EDMPreconditioning,
    PredictData as PredictData,
    PredictFlow as PredictFlow,
    PredictNoise as PredictNoise,
    PredictScore as PredictScore,
    PredictVelocity as PredictVelocity,
    PreviousMean as PreviousMean,
)
from ._predict import predict as predict, Prediction as Prediction, stop_mean as stop_mean
from ._process import (
    AbstractProcess as AbstractProcess,
    alpha_bar_schedule as alpha_bar_schedule,
    bridge_noise as bridge_noise,
    cosine_schedule as cosine_schedule,
    CosineVPSDE as CosineVPSDE,
    ddim_timesteps as ddim_timesteps,
    discretise as discretise,
    EDMSDE as EDMSDE,
    karras_times as karras_times,
    KernelSDE as KernelSDE,
    LearnedVPSDE as LearnedVPSDE,
    linear_schedule as linear_schedule,
    log_snr_times as log_snr_times,
    LogNoise as LogNoise,
    quadratic_times as quadratic_times,
    RectifiedFlow as RectifiedFlow,
    respace as respace,
    ScaledTime as ScaledTime,
    Schedule as Schedule,
    schedule_times as schedule_times,
    section_timesteps as section_timesteps,
    SubVPSDE as SubVPSDE,
    trailing_times as trailing_times,
    uniform_times as uniform_times,
    VESDE as VESDE,
    VPSDE as VPSDE,
    zero_terminal_snr as zero_terminal_snr,
)
from ._sampler import (
    AbstractChain as AbstractChain,
    AbstractConstraint as AbstractConstraint,
    AbstractCorrector as AbstractCorrector,
    AbstractDataDraw as AbstractDataDraw,
    AbstractPredictor as AbstractPredictor,
    AbstractSampler as AbstractSampler,
    Ancestral as Ancestral,
    AncestralPredictor as AncestralPredictor,
    AnnealedLangevin as AnnealedLangevin,
    Colourise as Colourise,
    Constrained as Constrained,
    DAPS as DAPS,
    DDIM as DDIM,
    DiffPIR as DiffPIR,
    DiffraxPredictor as DiffraxPredictor,
    DPMSolverPP as DPMSolverPP,
    EulerMaruyama as EulerMaruyama,
    Grid as Grid,
    Inpaint as Inpaint,
    Langevin as Langevin,
    LangevinDraw as LangevinDraw,
    LinearisedDraw as LinearisedDraw,
    Particles as Particles,
    PredictorCorrector as PredictorCorrector,
    ProbabilityFlow as ProbabilityFlow,
    Replace as Replace,
    ReverseDiffusion as ReverseDiffusion,
    ReverseSDE as ReverseSDE,
    SDEDPMSolverPP as SDEDPMSolverPP,
    Step as Step,
    StochasticHeun as StochasticHeun,
    Trajectory as Trajectory,
    TwistedSMC as TwistedSMC,
    UniPC as UniPC,
)
from ._serialise import load_model as load_model, save_model as save_model
from ._timesteps import (
    AbstractTimesteps as AbstractTimesteps,
    LikelihoodImportance as LikelihoodImportance,
    LogitNormal as LogitNormal,
    LogNormal as LogNormal,
    LossSecondMoment as LossSecondMoment,
    LowDiscrepancy as LowDiscrepancy,
    SmoothedSecondMoment as SmoothedSecondMoment,
    Uniform as Uniform,
    VelocityImportance as VelocityImportance,
)
from ._trace import (
    AbstractTrace as AbstractTrace,
    ExactTrace as ExactTrace,
    Hutchinson as Hutchinson,
)
from ._variance import (
    AbstractVariance as AbstractVariance,
    AnalyticVariance as AnalyticVariance,
    FixedLarge as FixedLarge,
    FixedSmall as FixedSmall,
    Learned as Learned,
    LearnedRange as LearnedRange,
)
from ._writer import AbstractWriter as AbstractWriter


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
