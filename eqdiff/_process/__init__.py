from .base import (
    AbstractProcess as AbstractProcess,
    as_time as as_time,
    has_no_signal as has_no_signal,
    noisiest as noisiest,
    with_signal as with_signal,
    without_signal as without_signal,
)
from .bridge import bridge_noise as bridge_noise
from .c_noise import LogNoise as LogNoise, ScaledTime as ScaledTime
from .checks import (
    check_signal as check_signal,
    check_time as check_time,
    described as described,
    known_to_differ as known_to_differ,
    require_process as require_process,
    require_schedule as require_schedule,
)
from .cosine import CosineVPSDE as CosineVPSDE
from .discretisation import discretise as discretise
from .edm import EDMSDE as EDMSDE
from .exact import exactly as exactly
from .kernel import KernelSDE as KernelSDE
from .learned import LearnedVPSDE as LearnedVPSDE
from .named import (
    alpha_bar_schedule as alpha_bar_schedule,
    cosine_schedule as cosine_schedule,
    linear_schedule as linear_schedule,
)
from .rectified_flow import RectifiedFlow as RectifiedFlow
from .respacing import respace as respace
from .schedule import is_whole as is_whole, Schedule as Schedule
from .spacing import ddim_timesteps as ddim_timesteps, section_timesteps as section_timesteps
from .sub_vp import SubVPSDE as SubVPSDE
from .times import (
    default_times as default_times,
    karras_times as karras_times,
    log_snr_times as log_snr_times,
    quadratic_times as quadratic_times,
    schedule_times as schedule_times,
    time_at as time_at,
    trailing_times as trailing_times,
    uniform_times as uniform_times,
)
from .ve import VESDE as VESDE
from .vp import VPSDE as VPSDE
from .zero_snr import zero_terminal_snr as zero_terminal_snr
