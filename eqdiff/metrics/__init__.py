"""Scores of samples: how good, how varied. Needs `pip install 'eqdiff[metrics]'`."""

from ._frechet import (
    ClassifierFeatures as ClassifierFeatures,
    frechet_distance as frechet_distance,
)
