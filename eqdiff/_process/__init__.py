from .base import AbstractProcess as AbstractProcess, AbstractSDE as AbstractSDE
from .sub_vp import SubVPSDE as SubVPSDE
from .ve import VESDE as VESDE
from .vp import VPSDE as VPSDE
