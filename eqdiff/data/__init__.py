r"""Real images as numbers a diffusion model can be trained on, and back as pictures.

A [`eqdiff.data.Dataset`][] holds integer images `(channels, height, width)` with `levels` grey
levels, or examples of any other shape; a loader turns them into float32 batches on the grid

$$x = -1 + \frac{2k}{L - 1}, \qquad k \in \{0, \dots, L-1\}, \tag{1}$$

on which the discretised decoder of $L_0$ and every dequantisation are defined. Floats have no
levels and stay as they are. Everything here is NumPy: nothing touches an accelerator. Needs `pip
install 'eqdiff[data]'`.
"""

from .._download import DownloadError as DownloadError
from ._adapters import as_source as as_source, RandomAccessSource as RandomAccessSource
from ._augment import AbstractAugmentation as AbstractAugmentation
from ._cache import cached as cached, MappedSource as MappedSource
from ._cifar10 import (
    cifar10 as cifar10,
    fetch_cifar10 as fetch_cifar10,
    find_cifar10 as find_cifar10,
)
from ._dataset import Dataset as Dataset
from ._digits import digits as digits
from ._edm_augment import EDMAugmentation as EDMAugmentation
from ._folder import FolderSource as FolderSource, image_folder as image_folder
from ._guess import TrainTestFolders as TrainTestFolders
from ._layout import (
    AbstractLayout as AbstractLayout,
    ClassFolders as ClassFolders,
    DatasetJSON as DatasetJSON,
    FileNames as FileNames,
    LabelFile as LabelFile,
    Unlabelled as Unlabelled,
)
from ._loader import Loader as Loader, loader as loader
from ._npz import NPZWriter as NPZWriter, write_npz as write_npz
from ._picture import write_grid as write_grid
from ._pixels import normalise as normalise, to_uint8 as to_uint8
from ._pngs import PNGWriter as PNGWriter, write_pngs as write_pngs
from ._source import (
    AbstractSource as AbstractSource,
    ArraySource as ArraySource,
    DamagedFileError as DamagedFileError,
)
