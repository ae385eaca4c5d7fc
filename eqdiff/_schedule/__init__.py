from .chain import Schedule as Schedule
from .continuous import ContinuousSchedule as ContinuousSchedule
from .discretisation import discretise as discretise
from .respacing import respace as respace
from .schedules import (
    alpha_bar_schedule as alpha_bar_schedule,
    cosine_schedule as cosine_schedule,
    linear_schedule as linear_schedule,
)
from .spacing import ddim_timesteps as ddim_timesteps, section_timesteps as section_timesteps
