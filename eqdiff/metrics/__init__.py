"""How good samples and likelihoods are. Classifiers need `pip install 'eqdiff[metrics]'`."""

from ._bits import bound_bits as bound_bits, flow_bits as flow_bits
from ._frechet import (
    ClassifierFeatures as ClassifierFeatures,
    frechet_distance as frechet_distance,
)
from ._mean import Mean as Mean, mean as mean
from ._quality import sample_quality as sample_quality, SampleQuality as SampleQuality
from ._table import table_bits as table_bits
