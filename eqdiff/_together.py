"""Work that several processes of `jax.distributed` do at the same time.

Each process does its part and tells the others what came of it, through the key-value store of
`jax.distributed`, on hosts alone: no device takes part, so that devices may do different things
meanwhile, and an error in one process is an error in all of them instead of an endless wait.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax

# The store has no public name; Orbax takes it from here too.
from jax._src import distributed


# Milliseconds between two looks at what the others say; Python hears of signals in between.
_LOOK = 1000
_DONE, _FAILED = b"+", b"-"

_rounds: collections.Counter[str] = collections.Counter()


def together(name: str, peers: Sequence[int], work: Callable[[], bytes]) -> dict[int, bytes]:
    """What `work()` returns in each of the processes `peers`, by process, in all of them.

    All of them call this with the same name and peers, in the same order.

    **Raises:** what `work` raises; `RuntimeError` if it raises in another process, or one has
    ended.
    """
    me = jax.process_index()
    if len(peers) == 1:
        return {me: work()}
    client: Any = distributed.global_state.client
    folder = f"eqdiff/{name}/{'-'.join(map(str, peers))}"
    count = _rounds[folder]
    _rounds[folder] += 1
    try:
        mine = work()
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"[:2000]
        client.key_value_set_bytes(f"{folder}/{count}/{me}", _FAILED + said.encode())
        raise
    client.key_value_set_bytes(f"{folder}/{count}/{me}", _DONE + mine)
    found = {me: mine}
    while len(found) < len(peers):
        for peer in peers:
            if peer in found:
                continue
            told = _look(client, name, f"{folder}/{count}/{peer}")
            if told is None:
                continue
            if told[:1] == _FAILED:
                raise RuntimeError(
                    f"{name}: process {peer} failed, so process {me} stops too. It said: "
                    f"{told[1:].decode()}"
                )
            found[peer] = told[1:]
    if count:
        # Who took part in this round has read all of the one before.
        client.key_value_delete(f"{folder}/{count - 1}/{me}")
    return {peer: found[peer] for peer in peers}


def _look(client: Any, name: str, key: str) -> bytes | None:
    try:
        return client.blocking_key_value_get_bytes(key, _LOOK)
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" in str(error):
            return None
        raise RuntimeError(
            f"{name}: another process of this job has ended: {str(error).splitlines()[0][:300]} "
            "Start the job again; with the same folder it continues."
        ) from error
