"""How good samples and likelihoods are. Classifiers need `pip install 'eqdiff[metrics]'`."""

from ._bits import bound_bits as bound_bits, flow_bits as flow_bits
from ._budget import (
    bound_errors as bound_errors,
    ErrorBudget as ErrorBudget,
    flow_errors as flow_errors,
)
from ._calibration import (
    Calibration as Calibration,
    calibration as calibration,
    calibration_ranks as calibration_ranks,
    posterior_ranks as posterior_ranks,
)
from ._classifier import ClassifierFeatures as ClassifierFeatures
from ._compare import compare as compare, Comparison as Comparison
from ._efficientnet import (
    efficientnet_lite0 as efficientnet_lite0,
    EfficientNetLite as EfficientNetLite,
)
from ._features import (
    AbstractFeatures as AbstractFeatures,
    extract as extract,
    to_uint8 as to_uint8,
)
from ._frechet import frechet_distance as frechet_distance
from ._inception import inception_v3 as inception_v3, InceptionV3 as InceptionV3
from ._inception_score import inception_score as inception_score
from ._kernel import kernel_distance as kernel_distance
from ._mean import Mean as Mean, mean as mean
from ._moments import Moments as Moments
from ._neighbours import (
    density_coverage as density_coverage,
    DensityCoverage as DensityCoverage,
    nearest_neighbours as nearest_neighbours,
    precision_recall as precision_recall,
    PrecisionRecall as PrecisionRecall,
)
from ._quality import sample_quality as sample_quality, SampleQuality as SampleQuality
from ._reference import read_moments as read_moments, write_moments as write_moments
from ._resize import (
    AbstractResize as AbstractResize,
    PillowBicubic as PillowBicubic,
    PyTorchBilinear as PyTorchBilinear,
    TensorFlowBilinear as TensorFlowBilinear,
)
from ._samples import read_samples as read_samples
from ._table import table_bits as table_bits
