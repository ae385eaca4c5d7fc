"""Diffusion models in JAX: Improved DDPM and score-based SDEs as Equinox modules and Diffrax solves."""

import importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

from . import nn as nn
from ._analytic import (
    GaussianDenoiser as GaussianDenoiser,
    GaussianMixtureDenoiser as GaussianMixtureDenoiser,
)
from ._bound import (
    analytic_variance as analytic_variance,
    BoundEstimate as BoundEstimate,
    estimate_variational_bound as estimate_variational_bound,
    optimal_timesteps as optimal_timesteps,
    optimal_variance as optimal_variance,
    pairwise_terms as pairwise_terms,
    PairwiseTerms as PairwiseTerms,
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
    LogisticNoise as LogisticNoise,
    UniformDequantisation as UniformDequantisation,
    VariationalDequantisation as VariationalDequantisation,
)
from ._gaussian import (
    discretised_gaussian_log_likelihood as discretised_gaussian_log_likelihood,
    discretised_gaussian_log_likelihood_exact as discretised_gaussian_log_likelihood_exact,
)
from ._generate import generate as generate
from ._guidance import (
    AbstractPosteriorCovariance as AbstractPosteriorCovariance,
    AbstractWrapper as AbstractWrapper,
    Classifier as Classifier,
    ClassifierFree as ClassifierFree,
    ClassifierGuidance as ClassifierGuidance,
    Clip as Clip,
    DynamicThreshold as DynamicThreshold,
    FixedArgs as FixedArgs,
    GuidanceInterval as GuidanceInterval,
    IsotropicCovariance as IsotropicCovariance,
    JacobianCovariance as JacobianCovariance,
    MeanShift as MeanShift,
    PosteriorGuidance as PosteriorGuidance,
    ZeroCovariance as ZeroCovariance,
)
from ._likelihood import (
    bits_per_dim as bits_per_dim,
    BitsPerDim as BitsPerDim,
    decode as decode,
    encode as encode,
    log_likelihood as log_likelihood,
    LogLikelihood as LogLikelihood,
    slerp as slerp,
)
from ._loss import (
    AbstractWeighting as AbstractWeighting,
    bound_term as bound_term,
    classifier_loss as classifier_loss,
    EDMWeighting as EDMWeighting,
    implicit_score_matching as implicit_score_matching,
    l_hybrid as l_hybrid,
    l_simple as l_simple,
    l_vlb as l_vlb,
    LikelihoodWeighting as LikelihoodWeighting,
    MinSNRWeighting as MinSNRWeighting,
    NoiseWeighting as NoiseWeighting,
    score_matching as score_matching,
    SigmoidWeighting as SigmoidWeighting,
    sliced_score_matching as sliced_score_matching,
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
from ._predict import (
    predict as predict,
    predict_from_noise as predict_from_noise,
    Prediction as Prediction,
    stop_mean as stop_mean,
)
from ._process import (
    AbstractProcess as AbstractProcess,
    AbstractSDE as AbstractSDE,
    CosineVPSDE as CosineVPSDE,
    EDMSDE as EDMSDE,
    KernelSDE as KernelSDE,
    LogNoise as LogNoise,
    RectifiedFlow as RectifiedFlow,
    ScaledTime as ScaledTime,
    SubVPSDE as SubVPSDE,
    VESDE as VESDE,
    VPSDE as VPSDE,
)
from ._sampler import (
    AbstractChain as AbstractChain,
    AbstractConstraint as AbstractConstraint,
    AbstractCorrector as AbstractCorrector,
    AbstractFinal as AbstractFinal,
    AbstractNorms as AbstractNorms,
    AbstractPredictor as AbstractPredictor,
    AbstractReplacement as AbstractReplacement,
    AbstractSampler as AbstractSampler,
    Ancestral as Ancestral,
    AncestralPredictor as AncestralPredictor,
    AnnealedLangevin as AnnealedLangevin,
    BatchMean as BatchMean,
    chain_times as chain_times,
    Colourise as Colourise,
    Constrained as Constrained,
    DDIM as DDIM,
    DiffraxPredictor as DiffraxPredictor,
    DPMSolverPP as DPMSolverPP,
    EulerMaruyama as EulerMaruyama,
    FinalEstimate as FinalEstimate,
    FinalMean as FinalMean,
    FinalSample as FinalSample,
    Inpaint as Inpaint,
    karras_times as karras_times,
    Langevin as Langevin,
    Levels as Levels,
    log_snr_times as log_snr_times,
    PerExample as PerExample,
    PredictorCorrector as PredictorCorrector,
    ProbabilityFlow as ProbabilityFlow,
    Proposal as Proposal,
    PublishedReplacement as PublishedReplacement,
    quadratic_times as quadratic_times,
    Replace as Replace,
    ReverseDiffusion as ReverseDiffusion,
    ReverseSDE as ReverseSDE,
    Step as Step,
    StochasticHeun as StochasticHeun,
    Trajectory as Trajectory,
    uniform_times as uniform_times,
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
from ._solver import (
    data_prediction as data_prediction,
    DPMSolverPP2M as DPMSolverPP2M,
    SolveStats as SolveStats,
)
from ._term import (
    augmented_flow as augmented_flow,
    Batched as Batched,
    forward_general_sde as forward_general_sde,
    forward_sde as forward_sde,
    general_probability_flow as general_probability_flow,
    probability_flow as probability_flow,
    reverse_general_sde as reverse_general_sde,
    reverse_sde as reverse_sde,
)
from ._timesteps import (
    AbstractTimesteps as AbstractTimesteps,
    LikelihoodImportance as LikelihoodImportance,
    LogitNormal as LogitNormal,
    LogNormal as LogNormal,
    LossSecondMoment as LossSecondMoment,
    LowDiscrepancy as LowDiscrepancy,
    SmoothedSecondMoment as SmoothedSecondMoment,
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
    AnalyticVariance as AnalyticVariance,
    FixedLarge as FixedLarge,
    FixedSmall as FixedSmall,
    Learned as Learned,
    LearnedRange as LearnedRange,
    ReverseStep as ReverseStep,
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
