"""PyTorch's weight files, read without PyTorch; nothing that a file says is run."""

from ._read import read_torch as read_torch, state_dict as state_dict
