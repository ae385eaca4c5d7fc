"""Readers of file formats, which run nothing that a file says."""

from ..._torch_file import read_torch as read_torch, state_dict as state_dict
from ._flax import read_flax as read_flax
from ._given import Given as Given, given_state_dict as given_state_dict, name_of as name_of
