"""State dicts inside something else: a training state's keys, and the names of what wraps a module.

A program passes anything to `torch.save`: weights alone, or a dictionary that holds them under
`"model"` or `"state_dict"`, with a moving average of them next to it. And a wrapper lengthens the
names of weights: `module.` of data-parallel training, `_orig_mod.` of `torch.compile`,
an attribute's name of Lightning. What is read is the moving average where there is one; whatever
else holds weights, and is not read, is said.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .._shown import shortened, shown


# In the order in which they are looked for.
_AVERAGES = ("ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "params_ema")
_TRAINED = ("state_dict", "model_state_dict", "model", "module", "net", "network", "params")
_COMPILED = "_orig_mod."


def is_state(value: Any) -> bool:
    """Names and arrays alone, at least one."""
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) for name in value)
        and not any(isinstance(a, Mapping | list | tuple | str | bytes) for a in value.values())
        and any(np.ndim(a) > 0 for a in value.values())
    )


def state_inside(contents: Any, source: str) -> Any:
    """The state dict that a training state holds: its moving average, or else its weights; anything
    else as it is.

    **Raises:** `ValueError` where there are several of a kind.
    """
    if not isinstance(contents, Mapping) or is_state(contents):
        return contents
    averages = [name for name in _AVERAGES if is_state(contents.get(name))]
    trained = [name for name in _TRAINED if is_state(contents.get(name))]
    for names in (averages, [] if averages else trained):
        if len(names) > 1:
            raise ValueError(
                f"{source} holds weights under each of {names}: give those that are meant, such as "
                f"weights[{names[0]!r}]."
            )
    if not averages and not trained:
        return contents
    name = (averages or trained)[0]
    unread = [n for n in _AVERAGES if n in contents and n != name]
    if averages and trained:
        _say(f"{source}: the moving average {name!r} is read, not the trained weights {trained}.")
    elif unread:
        _say(f"{source}: {name!r} is read; {unread} is not an average with names and arrays.")
    return contents[name]


def without_prefix(
    state: Mapping[str, Any], starts: Iterable[str], source: str
) -> Mapping[str, Any]:
    """A network's own names, which begin with one of `starts` or are beside one that does.

    What a compiled module adds is taken off everywhere; a prefix is what is in front of `starts`.

    **Raises:** `ValueError` where several networks are inside, of which not one is an average.
    """
    names = {name: name.replace(_COMPILED, "") for name in state}
    if len(set(names.values())) < len(names):
        raise ValueError(f"{source} holds weights with and without {_COMPILED!r} in their names.")
    state = {names[name]: array for name, array in state.items()}
    prefixes = sorted({prefix for name in state for prefix in _prefixes(name, starts)})
    if not prefixes or prefixes == [""]:
        return state
    if len(prefixes) > 1:
        averages = [prefix for prefix in prefixes if "ema" in prefix.lower()]
        if len(averages) != 1:
            raise ValueError(
                f"{source} holds several networks, whose names begin with {shown(prefixes)}: give "
                "the names and arrays of one."
            )
        prefixes = averages
    (prefix,) = prefixes
    inside = {n.removeprefix(prefix): a for n, a in state.items() if n.startswith(prefix)}
    left = [name for name in state if not name.startswith(prefix)]
    if left:
        few = shortened(", ".join(left[:4]), 200) + (", …" if len(left) > 4 else "")
        _say(f"{source}: the weights {prefix}* are read, {len(left)} others are not ({few}).")
    return inside


def _prefixes(name: str, starts: Iterable[str]) -> list[str]:
    found = ((start, name.find(start)) for start in starts)
    return [name[:at] for _, at in found if at == 0 or (at > 0 and name[at - 1] == ".")]


def _say(text: str) -> None:
    warnings.warn(text, stacklevel=2)
