r"""A file that explains itself.

One safetensors file holds a denoiser whole: the network's weights as tensors, and in its metadata,
as JSON, the classes and arguments from which network, process, parameterisation and variance are
built again. Nothing in a file is executed: class names are looked up in an explicit table,
arguments are plain data, and tensors are numbers.

A class can be saved if each argument of its constructor (but `key`) is kept as an attribute of the
same name; all of eqdiff's are.

The format has a version, which a file names. Files are written in format 4; those of formats 1 to 3
are still read, by the names and arguments that classes had then.

1. network, process, parameterisation and variance;
2. also the denoiser's own time input (its "label"), of a class that can be saved;
3. the names of today: `c_noise` for "label", one process for a schedule and its continuous view;
4. one U-Net, of a shape, a style and an embedding.
"""

from .load import load_model as load_model, read_safetensors as read_safetensors
from .save import save_model as save_model
from .schema import check_arguments as check_arguments, Room as Room
