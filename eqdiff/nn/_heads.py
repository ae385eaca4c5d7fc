"""The heads of a U-Net's attention, and the blocks that attend.

Parts of a style (`_style.py`): small, frozen, compared by value.
"""

import abc
import dataclasses
from typing import ClassVar


class AbstractHeads(abc.ABC):
    """How many heads an attention has."""

    @abc.abstractmethod
    def number(self, width: int, *, up: bool) -> int:
        """For a width, on the way up or elsewhere.

        **Raises:** `ValueError` where the width cannot be split.
        """


@dataclasses.dataclass(frozen=True)
class Heads(AbstractHeads):
    """A fixed number of heads.

    **Arguments:**

    - `heads`: how many.
    - `up`: how many on the way up; `None` for as many.

    **Example:**

    ```python
    style = eqd.nn.styles.iddpm(heads=eqd.nn.styles.Heads(8))
    ```
    """

    heads: int = 1
    up: int | None = None

    def number(self, width: int, *, up: bool) -> int:
        """See `AbstractHeads.number`; `AttentionBlock` refuses what does not fit."""
        return self.up if up and self.up is not None else self.heads


@dataclasses.dataclass(frozen=True)
class HeadsOf(AbstractHeads):
    """Heads of a fixed number of channels, which must divide every width with attention (ADM).

    **Arguments:**

    - `channels`: of each head.

    **Example:**

    ```python
    style = eqd.nn.styles.adm(heads=eqd.nn.styles.HeadsOf(32))
    ```
    """

    channels: int = 64

    def number(self, width: int, *, up: bool) -> int:
        """See `AbstractHeads.number`."""
        if self.channels < 1 or width % self.channels != 0:
            raise ValueError(
                f"{width} channels cannot be split into heads of {self.channels}; use heads of a "
                "number of channels that divides every width with attention."
            )
        return width // self.channels


@dataclasses.dataclass(frozen=True)
class HeadsOfAtLeast(AbstractHeads):
    """As many heads as there can be with a number of channels or more (EDM).

    **Arguments:**

    - `channels`: of each head, at least.

    **Example:**

    ```python
    style = eqd.nn.styles.edm_adm(heads=eqd.nn.styles.HeadsOfAtLeast(32))
    ```
    """

    channels: int = 64

    def number(self, width: int, *, up: bool) -> int:
        """See `AbstractHeads.number`."""
        if self.channels < 1 or width < self.channels:
            raise ValueError(
                f"attention with {self.channels} channels per head needs at least as many "
                f"channels, got {width}; use heads of fewer channels."
            )
        return width // self.channels


class AbstractAttentionUp(abc.ABC):
    """Which blocks of a level have attention on the way up; on the way down all have it."""

    every: ClassVar[bool]


@dataclasses.dataclass(frozen=True)
class EveryBlock(AbstractAttentionUp):
    """Attention after every block (OpenAI, Ho et al. 2020).

    **Example:**

    ```python
    style = eqd.nn.styles.ddpm(attention_up=eqd.nn.styles.EveryBlock())
    ```
    """

    every = True


@dataclasses.dataclass(frozen=True)
class LastBlock(AbstractAttentionUp):
    """Attention after the last block (Song).

    **Example:**

    ```python
    style = eqd.nn.styles.ddpm(attention_up=eqd.nn.styles.LastBlock())
    ```
    """

    every = False
