from .clock import time_of as time_of
from .dpm import data_prediction as data_prediction, DPMSolverPP2M as DPMSolverPP2M
from .stats import calls_of as calls_of, solve_stats as solve_stats, SolveStats as SolveStats
