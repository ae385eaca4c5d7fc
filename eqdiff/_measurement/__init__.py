from .measurement import (
    Linearised as Linearised,
    Measurement as Measurement,
    require_measurement as require_measurement,
)
from .noise import (
    AbstractMeasurementNoise as AbstractMeasurementNoise,
    CorrelatedNoise as CorrelatedNoise,
    GaussianNoise as GaussianNoise,
    PoissonNoise as PoissonNoise,
)
