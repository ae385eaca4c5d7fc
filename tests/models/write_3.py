"""How the files `*_3.safetensors` in this folder were made: networks of format 3 and their answers.

Runs with eqdiff at commit c356c9d alone, whose names it uses: `python write_3.py FOLDER`, float32,
CPU. As in `write.py`, every array is random.
"""

import json
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import eqdiff as eqd


FOLDER = sys.argv[1]
SMALL = dict(channels=4, num_res_blocks=1, channel_mult=(1, 2), attention_downsamples=(2,))


def filled(make):
    rng = np.random.default_rng(0)

    def fill(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        scale = 0.5 if leaf.ndim == 1 else np.prod(leaf.shape[1:]) ** -0.5
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map(fill, eqx.filter_eval_shape(make, jax.random.key(0)))


def score(make, **options):
    return eqd.Denoiser(
        filled(lambda key: make(1, 1, **SMALL, num_classes=3, **options, key=key)),
        eqd.VESDE(),
        eqd.PredictScore(),
    )


LEVELS = dict(sigma_levels=(0.01, 50.0, 100), scale_by_sigma=True, centred=False)
ADM = dict(channels_per_head=4, resblock_updown=True, scale_shift_norm=False, norm_groups=2)
MODELS = {
    "unet_ncsnpp_3": score(
        eqd.nn.NCSNpp,
        centred=False,
        progressive="output_skip",
        progressive_input="input_skip",
        progressive_combine="cat",
        init_scale=0.1,
    ),
    "unet_ncsnpp_residual_3": score(
        eqd.nn.NCSNpp,
        progressive="residual",
        embedding="positional",
        sigma_levels=(0.01, 50.0, 100),
        block="ddpm",
        skip_rescale=False,
    ),
    "unet_ddpm_3": score(eqd.nn.DDPM, norm_groups=2, conv_resample=False, **LEVELS),
    "unet_song_3": eqd.Denoiser(
        filled(
            lambda key: eqd.nn.SongUNet(
                1,
                1,
                **SMALL,
                embedding="fourier",
                encoder="residual",
                decoder="skip",
                kernel=(1, 3, 3, 1),
                noise_mult=2,
                num_classes=3,
                key=key,
            )
        ),
        eqd.EDMSDE(),
        eqd.EDMPreconditioning(),
    ),
    "unet_adm_3": eqd.Denoiser(
        filled(lambda key: eqd.nn.UNet(1, 2, **SMALL, **ADM, num_classes=3, key=key)),
        eqd.cosine_schedule(40),
        variance=eqd.LearnedRange(),
    ),
}


def answer(denoiser):
    t = 3 if isinstance(denoiser.process, eqd.Schedule) else 0.37
    x = jnp.linspace(-1, 1, 64, dtype=jnp.float32).reshape(1, 8, 8)
    estimate = denoiser(t, x, jnp.asarray(1))
    fields = {"x0": estimate.x0, "noise": estimate.noise, "raw_variance": estimate.raw_variance}
    numbers = {k: None if v is None else np.ravel(v).tolist() for k, v in fields.items()}
    return {"t": t} | numbers


for name, denoiser in MODELS.items():
    eqd.save_model(f"{FOLDER}/{name}.safetensors", denoiser, overwrite=True)
with open(f"{FOLDER}/answers.json") as file:
    answers = json.load(file)
answers |= {name: answer(denoiser) for name, denoiser in MODELS.items()}
with open(f"{FOLDER}/answers.json", "w") as file:
    json.dump(answers, file)
