r"""Training: one state, one step, and what a long run needs around them.

```python
state = eqd.train.init(net, optimiser, timesteps=eqd.Uniform(schedule), ema=(0.9999,), key=key)
step = eqd.train.make_step(loss_fn, optimiser)
state, metrics = step(state, (x0, args))
```

There is no trainer object: the loop is a generator, `fit`, and what happens between two checkpoints
is the body of your own `for`. Checkpoints need `pip install 'eqdiff[checkpoint]'`.
"""

from . import recipes as recipes
from ._checkpoint import Checkpointer as Checkpointer, CheckpointError as CheckpointError
from ._chip import (
    device_memory as device_memory,
    DeviceMemory as DeviceMemory,
    peak_flops as peak_flops,
)
from ._command import (
    command as command,
    compilation_cache as compilation_cache,
    resume_command as resume_command,
)
from ._compiled import Step as Step, StepCost as StepCost
from ._curve import plot_metrics as plot_metrics
from ._ema import (
    AbstractEMA as AbstractEMA,
    EMA as EMA,
    EMAWarmup as EMAWarmup,
    HalfLife as HalfLife,
    PowerEMA as PowerEMA,
)
from ._exit import GracefulExit as GracefulExit
from ._fit import Diverged as Diverged, fit as fit
from ._layout import AbstractLayout as AbstractLayout, Flat as Flat, Leaves as Leaves
from ._log import MetricLog as MetricLog, read_metrics as read_metrics
from ._metrics import StepMetrics as StepMetrics, summarise as summarise
from ._pairs import optimal_pairs as optimal_pairs, OptimalNoise as OptimalNoise
from ._place import memory_per_device as memory_per_device
from ._processes import is_writer as is_writer, start_processes as start_processes
from ._recipe import Changes as Changes, Recipe as Recipe
from ._reconstruct import (
    reconstruct as reconstruct,
    Reconstruction as Reconstruction,
    reconstruction as reconstruction,
    stored_averages as stored_averages,
    StoredAverage as StoredAverage,
)
from ._report import write_report as write_report
from ._run import (
    read_settings as read_settings,
    ResumableBatches as ResumableBatches,
    Run as Run,
    Stopped as Stopped,
)
from ._shard import data_mesh as data_mesh
from ._sinks import AbstractSink as AbstractSink, TensorBoard as TensorBoard, WandB as WandB
from ._state import init as init, TrainState as TrainState
from ._step import make_step as make_step, make_steps as make_steps
