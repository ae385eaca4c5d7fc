"""Which steps of a schedule to keep.

Nichol & Dhariwal (2021, section 4) space steps evenly, in one section or several; Song et al.
(2020) use a whole stride. Both are lists of indices, to be given to `respace`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from .._check import whole


def section_timesteps(num_steps: int, counts: Sequence[int]) -> Int[np.ndarray, " K"]:
    r"""Splits $0, \dots, T-1$ into equal sections and spaces a number of steps evenly in each.

    Both ends of every section are included: `section_timesteps(4000, (100,))` is the official
    `"100"`, and `section_timesteps(300, (10, 15, 20))` its `"10,15,20"`. A section with a count of
    one keeps its *last* step, the noisiest, where the official code keeps its first and so starts
    sampling from a nearly clean image.

    **Arguments:**

    - `num_steps`: the length $T$ of the schedule.
    - `counts`: how many steps to keep in each section.

    **Returns:** the kept indices, increasing.

    **Raises:** `ValueError` for a section asked for more steps than it has.

    **Example:**

    ```python
    steps = eqd.section_timesteps(300, (10, 15, 20))  # 45 of them
    ```
    """
    if len(counts) == 0:
        raise ValueError(
            f"section_timesteps({num_steps}, ()): expected one count per section, for example "
            f"({num_steps},)."
        )
    sections, extra = divmod(num_steps, len(counts))
    start, kept = 0, []
    for i, count in enumerate(counts):
        size = sections + (i < extra)
        count = whole("section_timesteps", "counts", count)
        if not 1 <= count <= size:
            raise ValueError(
                f"section_timesteps({num_steps}, {tuple(counts)}): section {i} has {size} steps, "
                f"so its count must lie between 1 and {size}, but it is {count}."
            )
        if count == 1:
            kept.append(start + size - 1)
        else:
            stride = (size - 1) / (count - 1)
            # Accumulated and rounded half to even, because that decides which steps the official
            # models were scored on.
            position = 0.0
            for _ in range(count):
                kept.append(start + round(position))
                position += stride
        start += size
    return np.array(kept)


def ddim_timesteps(num_steps: int, count: int) -> Int[np.ndarray, " K"]:
    r"""Every $i$-th step from 0, with the smallest stride $i$ that gives exactly `count`: the
    official `"ddimN"`.

    **Arguments:**

    - `num_steps`: the length $T$ of the schedule.
    - `count`: how many steps to keep.

    **Returns:** $0, i, 2i, \dots$: the last step, $T - 1$, is in general not among them.

    **Raises:** `ValueError`, naming the nearest counts that work, where no stride gives `count`
    steps.

    **Example:**

    ```python
    steps = eqd.ddim_timesteps(1000, 50)  # 0, 20, ..., 980
    ```
    """
    count = whole("ddim_timesteps", "count", count)
    # A stride of T would keep the step 0 alone, and sampling would start from a nearly clean image.
    strides = range(max(num_steps - 1, 1), 0, -1)
    possible = {len(range(0, num_steps, stride)): stride for stride in strides}
    if count not in possible:
        nearest = sorted(sorted(possible, key=lambda n: abs(n - count))[:4])
        raise ValueError(
            f"ddim_timesteps({num_steps}, {count}): no whole stride gives exactly {count} steps; "
            f"the nearest counts that work are {', '.join(map(str, nearest))}. For any count "
            f"write section_timesteps({num_steps}, ({count},))."
        )
    return np.arange(0, num_steps, possible[count])
