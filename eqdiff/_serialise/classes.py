"""What a file can hold: the table of classes, their arguments, and a network's arrays."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from .. import nn
from .._padding import (
    LatLonPadding,
    MixedPadding,
    PeriodicPadding,
    ReflectingPadding,
    ZeroPadding,
)
from .._parameterisation import (
    AbstractParameterisation,
    EDMPreconditioning,
    PredictData,
    PredictFlow,
    PredictNoise,
    PredictScore,
    PredictVelocity,
    PreviousMean,
)
from .._process import (
    AbstractProcess,
    CosineVPSDE,
    EDMSDE,
    LearnedVPSDE,
    LogNoise,
    RectifiedFlow,
    ScaledTime,
    Schedule,
    SubVPSDE,
    VESDE,
    VPSDE,
)
from .._variance import (
    AbstractVariance,
    AnalyticVariance,
    FixedLarge,
    FixedSmall,
    Learned,
    LearnedRange,
)


FORMAT_VERSION = 4

_NETWORKS = (
    *(nn.UNet, nn.UNetClassifier, nn.NCSNv2, nn.DiT, nn.MLP),
    *(nn.SuperResolution, nn.Centred, nn.DividedBySigma, nn.FourierFeatures),
    *(nn.UNetShape, nn.Style, nn.Embedding, nn.FusedAttention, nn.PlainAttention),
    *(nn.AttentionPool, nn.AveragePool, nn.SpatialPool),
    *(nn.ClassCondition, nn.VectorCondition, nn.FieldCondition, nn.TokenCondition),
)
# What styles and embeddings are made of.
_PIECES = {
    f"eqdiff.nn.{module.__name__.rpartition('.')[2]}.{name}": value
    for module in (nn.styles, nn.embeddings)
    for name, value in vars(module).items()
    if isinstance(value, type)
}

_CLASSES = {
    f"eqdiff.{cls.__name__}": cls
    for cls in (
        *(VPSDE, VESDE, SubVPSDE, CosineVPSDE, EDMSDE, RectifiedFlow),
        *(LearnedVPSDE, Schedule),
        *(
            PredictNoise,
            PredictData,
            PredictVelocity,
            PredictScore,
            PredictFlow,
            EDMPreconditioning,
            PreviousMean,
        ),
        *(FixedSmall, FixedLarge, Learned, LearnedRange, AnalyticVariance),
        *(ScaledTime, LogNoise),
        *(LatLonPadding, MixedPadding, PeriodicPadding, ReflectingPadding, ZeroPadding),
    )
}
_CLASSES |= {f"eqdiff.nn.{cls.__name__}": cls for cls in _NETWORKS} | _PIECES


PARTS = ("net", "process", "parameterisation", "variance", "c_noise")
# What the parts after the network are.
KINDS = {
    "process": AbstractProcess,
    "parameterisation": AbstractParameterisation,
    "variance": AbstractVariance,
    "c_noise": Callable,
}
# Arguments that are kept under another name, because a method has theirs.
ATTRIBUTES = {(Schedule, "c_noise"): "c_noises"}


def table(extra: Iterable[type]) -> dict[str, Any]:
    """Every class that a file can name, under its name there."""
    return _CLASSES | {f"{cls.__module__}.{cls.__qualname__}": cls for cls in extra}


def arguments_of(cls: type) -> list[str]:
    """What the constructor of a class takes, but `key`."""
    return [name for name in inspect.signature(cls).parameters if name != "key"]


def leaves_of(net: Any) -> dict[str, Any]:
    """Every array of a network under its path, such as `encoder.0.blocks.0.conv1.weight`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(net)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in leaves
        if isinstance(leaf, (jax.Array, np.ndarray, jax.ShapeDtypeStruct))
    }
