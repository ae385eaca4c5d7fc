"""The embedding of each family, in terms of the objects of `_embedding.py`."""

from .._embedding import Embedding, OneHotAfter, OneHotBefore
from .._style import FanInit
from .._time_features import AbstractTime, Sinusoids, SongSinusoids


def iddpm() -> Embedding:
    """Improved DDPM's and ADM's: sinusoids of the time input, and a table of classes.

    **Returns:** an [`eqdiff.nn.Embedding`][].

    **Example:**

    ```python
    embed = eqd.nn.embeddings.iddpm()
    ```
    """
    return Embedding()


def score_sde(time: AbstractTime = SongSinusoids()) -> Embedding:
    r"""DDPM's, DDPM++'s and NCSN++'s, and a table of classes.

    **Arguments:**

    - `time`: [`eqdiff.nn.embeddings.SongSinusoids`][] of the time input as it is (VP), or of a time
        input of $\log\sigma$ (VE) [`eqdiff.nn.embeddings.Fourier`][] features or the sinusoids of
        [`eqdiff.nn.embeddings.NoiseLevels`][].

    **Returns:** an [`eqdiff.nn.Embedding`][].

    **Example:**

    ```python
    embed = eqd.nn.embeddings.score_sde(eqd.nn.embeddings.Fourier())
    ```
    """
    return Embedding(time, init=FanInit())


def edm(
    time: AbstractTime = SongSinusoids(), *, class_dropout: float = 0.0, mult: int = 4
) -> Embedding:
    """That of EDM's DDPM++ (sinusoids) and NCSN++ ([`eqdiff.nn.embeddings.Fourier`][]): class and
    augmentation are added before the perceptron.

    **Arguments:**

    - `time`, `mult`: as for [`eqdiff.nn.Embedding`][].
    - `class_dropout`: the probability that a class is dropped where a key is given.

    **Returns:** an [`eqdiff.nn.Embedding`][].

    **Example:**

    ```python
    embed = eqd.nn.embeddings.edm(class_dropout=0.1)
    ```
    """
    return Embedding(time, OneHotBefore(class_dropout), FanInit(), mult)


def edm_adm(*, class_dropout: float = 0.0, mult: int = 4) -> Embedding:
    """That of EDM's ADM: the class is added after the perceptron, an augmentation before it.

    **Arguments:** as for [`eqdiff.nn.embeddings.edm`][].

    **Returns:** an [`eqdiff.nn.Embedding`][].

    **Example:**

    ```python
    embed = eqd.nn.embeddings.edm_adm(class_dropout=0.1)
    ```
    """
    return Embedding(Sinusoids(), OneHotAfter(class_dropout), mult=mult)
