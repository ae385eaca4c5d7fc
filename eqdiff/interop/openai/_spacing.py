r"""The flag `timestep_respacing`: which steps the scripts keep.

As [`eqdiff.section_timesteps`][] and [`eqdiff.ddim_timesteps`][], but for sections with a count of
one or none: of the one the official code keeps the *first* step, of the other nothing. So "10,1" of
1000 steps ends at 500, and sampling starts from there; that is what the scripts do.
"""

import numpy as np
from jaxtyping import Int

from ..._process import ddim_timesteps, section_timesteps


def kept_steps(num_steps: int, spacing: str) -> Int[np.ndarray, " K"]:
    """The official steps.

    **Raises:** `ValueError` for another text, for more steps than a section has, and for no step.
    """
    flag, words = f"flag timestep_respacing={spacing!r}", spacing.split(",")
    if spacing.startswith("ddim"):
        count = spacing.removeprefix("ddim")
        if not (count.isdecimal() and int(count) > 0):
            raise ValueError(f"{flag}: expected a number after ddim, such as 'ddim50'.")
        return ddim_timesteps(num_steps, int(count))
    if not all(word.strip().isdecimal() and len(word) < 9 for word in words):
        raise ValueError(f"{flag}: expected 'ddimN', or whole numbers with commas between.")
    counts = [int(word) for word in words]
    sections, extra = divmod(num_steps, len(counts))
    start, kept = 0, []
    for i, count in enumerate(counts):
        size = sections + (i < extra)
        if count > size:
            raise ValueError(f"{flag}: section {i} has {size} steps, of which none makes {count}.")
        if count == 1:
            kept.append(np.array([start]))
        elif count > 1:
            kept.append(start + section_timesteps(size, (count,)))
        start += size
    if not kept:
        raise ValueError(f"{flag}: expected a step to keep.")
    return np.concatenate(kept)
