"""Scores of samples: how good, how varied. Needs `pip install 'eqdiff[metrics]'`."""

from ._classifier import ClassifierScore as ClassifierScore, SampleScore as SampleScore
