"""How good samples and likelihoods are. Classifiers need `pip install 'eqdiff[metrics]'`."""

from ._frechet import (
    ClassifierFeatures as ClassifierFeatures,
    frechet_distance as frechet_distance,
)
from ._mean import Mean as Mean, mean as mean
