"""Linear operators for [`eqdiff.Measurement`][]: what instruments do to an example.

Each is a function of one example; JAX finds its adjoint.
"""

from ._blur import Blur as Blur, GaussianBlur as GaussianBlur
from ._downsample import Downsample as Downsample
from ._fourier import Fourier as Fourier
from ._mask import Mask as Mask
from ._radon import Radon as Radon
