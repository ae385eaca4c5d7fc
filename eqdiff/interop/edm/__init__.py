"""EDM (Karras et al. 2022), whose files are pickles of whole objects."""

from ._load import load_edm as load_edm
from ._network import edm_network as edm_network, edm_state_dict as edm_state_dict
