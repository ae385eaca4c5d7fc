"""Networks: Equinox modules that are called as `net(c_noise, x, args, key=key)` with one example.

Networks of published experiments are made by name in `eqdiff.nn.presets`.
"""

from . import embeddings as embeddings, presets as presets, styles as styles
from ._attend import FusedAttention as FusedAttention, PlainAttention as PlainAttention
from ._classifier import UNetClassifier as UNetClassifier
from ._condition import Conditions as Conditions
from ._conditions import (
    ClassCondition as ClassCondition,
    FieldCondition as FieldCondition,
    TokenCondition as TokenCondition,
    VectorCondition as VectorCondition,
)
from ._dit import DiT as DiT
from ._embedding import Embedding as Embedding
from ._ends import Centred as Centred, DividedBySigma as DividedBySigma
from ._fourier import FourierFeatures as FourierFeatures
from ._mlp import MLP as MLP
from ._ncsnv2 import NCSNv2 as NCSNv2
from ._pool import (
    AttentionPool as AttentionPool,
    AveragePool as AveragePool,
    SpatialPool as SpatialPool,
)
from ._shape import UNetShape as UNetShape
from ._style import Style as Style
from ._super_resolution import (
    area_downsample as area_downsample,
    SuperResolution as SuperResolution,
)
from ._transfer import transfer as transfer, Transferred as Transferred
from ._unet import UNet as UNet
