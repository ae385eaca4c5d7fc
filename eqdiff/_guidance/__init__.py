from .autoguidance import AutoGuidance as AutoGuidance
from .base import FixedArgs as FixedArgs, refuse_no_signal as refuse_no_signal
from .batched import (
    Batched as Batched,
    check_batch as check_batch,
    over_examples as over_examples,
)
from .classifier import (
    ClassifierGuidance as ClassifierGuidance,
    MeanShift as MeanShift,
)
from .classifier_free import ClassifierFree as ClassifierFree
from .clip import Clip as Clip, ClipDataAlone as ClipDataAlone
from .covariance import (
    AbstractPosteriorCovariance as AbstractPosteriorCovariance,
    IsotropicCovariance as IsotropicCovariance,
    JacobianCovariance as JacobianCovariance,
    Tweedie as Tweedie,
    ZeroCovariance as ZeroCovariance,
)
from .dynamic_threshold import DynamicThreshold as DynamicThreshold
from .interval import GuidanceInterval as GuidanceInterval
from .inverse import PosteriorGuidance as PosteriorGuidance
from .linear import (
    check_partial_isometry as check_partial_isometry,
    LinearOperator as LinearOperator,
    output_shape as output_shape,
    transpose_of as transpose_of,
)
from .noise_conditional import Classifier as Classifier
from .projected import ProjectedClassifierFree as ProjectedClassifierFree
from .rescaled import RescaledClassifierFree as RescaledClassifierFree
from .system import weighed_residual as weighed_residual
from .zero_star import ZeroStarClassifierFree as ZeroStarClassifierFree
