"""Networks in files: what they were built with is read again, and nothing of it is lost."""

import jax
import numpy as np
import pytest
from helpers import random_network

import eqdiff as eqd
import eqdiff.nn as nn
from eqdiff.nn import _flags, embeddings, styles


_SMALL = dict(
    in_channels=2,
    out_channels=2,
    channels=8,
    num_res_blocks=1,
    channel_mult=(1,),
    attention_downsamples=(),
)

_BUILD = {
    "UNet": lambda key: nn.UNet(
        nn.UNetShape(2, 2, 8, 1, (0.5, 1), (), dims=1),
        styles.adm(heads=styles.HeadsOf(4), norm_groups=4),
        embeddings.iddpm(),
        key=key,
    ),
    "ddpm": lambda key: _flags.ddpm(
        **_SMALL, norm_groups=4, conv_resample=False, attention_after_every=True, key=key
    ),
    "unconditional": lambda key: _flags.ddpm(
        **_SMALL, norm_groups=4, conditional=False, centred=False, key=key
    ),
    "ncsnpp": lambda key: _flags.ncsnpp(
        **_SMALL,
        frequencies=(0.5,) * 7 + (1 / 3,),
        progressive="residual",
        progressive_input="input_skip",
        progressive_combine="cat",
        num_classes=3,
        key=key,
    ),
    "levels": lambda key: _flags.ncsnpp(
        **_SMALL,
        embedding="positional",
        sigma_levels=(0.01, 50, 7),
        block="ddpm",
        progressive="output_skip",
        init_scale=0.1,
        key=key,
    ),
    "NCSNv2": lambda key: nn.NCSNv2(
        2, 2, 4, channel_mult=(1, 1), dilations=(1, 2), centred=False, key=key
    ),
    "song_unet": lambda key: _flags.edm_song(
        **_SMALL, embedding="fourier", kernel=(1, 3, 3, 1), num_classes=3, key=key
    ),
    "dhariwal_unet": lambda key: _flags.edm_dhariwal(
        **_SMALL, channels_per_head=4, augment_size=2, key=key
    ),
    "FourierFeatures": lambda key: nn.FourierFeatures(
        nn.MLP(14, 2, width=4, depth=1, key=key), levels=17, octaves=3
    ),
    "DiT": lambda key: nn.DiT(2, 2, 2, 8, 1, 2, num_classes=3, key=key),
}


@pytest.mark.parametrize("name", _BUILD)
def test_a_file_holds_the_network(tmp_path, name):
    pytest.importorskip("safetensors")
    net = random_network(_BUILD[name])
    path = tmp_path / "net.safetensors"
    eqd.save_model(path, eqd.Denoiser(net, eqd.VESDE(), eqd.PredictScore()))
    again = eqd.load_model(path).net
    # Equal structures have equal static fields.
    assert jax.tree.structure(again) == jax.tree.structure(net)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(net), strict=True):
        np.testing.assert_array_equal(a, b)
