from .base import AbstractProcess as AbstractProcess, AbstractSDE as AbstractSDE
from .cosine import CosineVPSDE as CosineVPSDE
from .edm import EDMSDE as EDMSDE
from .kernel import KernelSDE as KernelSDE
from .label import LogNoise as LogNoise, ScaledTime as ScaledTime
from .rectified_flow import RectifiedFlow as RectifiedFlow
from .sub_vp import SubVPSDE as SubVPSDE
from .ve import VESDE as VESDE
from .vp import VPSDE as VPSDE
