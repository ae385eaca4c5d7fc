"""How the models in this folder were made: files of formats 1 and 2 and their denoisers' answers.

Runs with eqdiff 0.1.0 (commit 334ac08) alone, whose names it uses: `python write.py FOLDER`,
float32, CPU. Weights are random in every array, so that no map is zero and every number of a file
tells in its answer.
"""

import json
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import eqdiff as eqd


FOLDER = sys.argv[1]
SCHEDULE = eqd.respace(eqd.cosine_schedule(40), [0, 3, 7, 12, 20, 31, 39])
UNSCALED = eqd.Schedule(eqd.linear_schedule(50).betas, labels=np.arange(50))


def filled(make):
    rng = np.random.default_rng(0)

    def fill(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        scale = 0.5 if leaf.ndim == 1 else np.prod(leaf.shape[1:]) ** -0.5
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map(fill, eqx.filter_eval_shape(make, jax.random.key(0)))


def mlp(out_size=2):
    return filled(lambda key: eqd.nn.MLP(2, out_size, width=8, depth=1, key=key))


def unet():
    sizes = (1, 2, 4, 1, (1, 2), (2,))
    return filled(
        lambda key: eqd.nn.UNet(*sizes, num_heads=1, num_classes=3, norm_groups=2, key=key)
    )


def dit():
    options = dict(patch_size=4, channels=8, depth=1, num_heads=2, num_classes=3)
    return filled(lambda key: eqd.nn.DiT(1, 1, label_dropout=0.1, **options, key=key))


def song_unet():
    options = dict(num_classes=3, label_dropout=0.1)
    return filled(lambda key: eqd.nn.SongUNet(1, 1, 8, 1, (1,), (), **options, key=key))


def dhariwal_unet():
    options = dict(num_classes=3, label_dropout=0.1, channels_per_head=4)
    return filled(lambda key: eqd.nn.DhariwalUNet(1, 1, 8, 1, (1,), (), **options, key=key))


D = eqd.Denoiser
MODELS = {
    "vp_noise": D(mlp(), eqd.VPSDE(0.2, 15.0, t0=1e-4), eqd.Noise()),
    "ve_score": D(mlp(), eqd.VESDE(0.02, 30.0), eqd.Score()),
    "sub_vp_data": D(mlp(), eqd.SubVPSDE(), eqd.Data()),
    "cosine_velocity": D(mlp(), eqd.CosineVPSDE(log_snr_shift=-1.0), eqd.Velocity()),
    "edm_edm": D(mlp(), eqd.EDMSDE(), eqd.EDM(0.6)),
    "flow_flow": D(mlp(), eqd.RectifiedFlow(), eqd.Flow()),
    "schedule_previous_mean": D(mlp(), SCHEDULE, eqd.PreviousMean(), variance=eqd.FixedSmall()),
    "schedule_learned": D(mlp(4), SCHEDULE, variance=eqd.Learned()),
    "schedule_analytic": D(
        mlp(), SCHEDULE, variance=eqd.AnalyticVariance(np.linspace(0.9, 0.1, 40))
    ),
    "continuous_schedule": D(mlp(), eqd.cosine_schedule(40).continuous()),
    "continuous_unclipped": D(mlp(), eqd.linear_schedule(40).continuous()),
    "scaled_time": D(mlp(), eqd.VPSDE(), label=eqd.ScaledTime(499.0)),
    "log_noise_level": D(
        mlp(), eqd.EDMSDE(), eqd.EDM(), label=eqd.LogNoiseLevel(eqd.EDMSDE(), 0.5)
    ),
    "unet_learned_range": D(unet(), UNSCALED, variance=eqd.LearnedRange()),
    "unet_dit": D(dit(), UNSCALED),
    "unet_song": D(song_unet(), eqd.EDMSDE(), eqd.EDM()),
    "unet_dhariwal": D(dhariwal_unet(), eqd.EDMSDE(), eqd.EDM()),
}


def answer(name, denoiser):
    whole = isinstance(denoiser.process, eqd.Schedule)
    # At a step: between two of them today's interpolant differs, here by 0.0008 in log-SNR.
    t = 3 if whole else 3.0 if name.startswith("continuous") else 0.37
    image = name.startswith("unet")
    x = jnp.asarray([0.3, -0.7], jnp.float32)
    if image:
        x = jnp.linspace(-1, 1, 64, dtype=jnp.float32).reshape(1, 8, 8)
    estimate = denoiser(t, x, jnp.asarray(1) if image else None)
    fields = {"x0": estimate.x0, "noise": estimate.noise, "raw_variance": estimate.raw_variance}
    numbers = {k: None if v is None else np.ravel(v).tolist() for k, v in fields.items()}
    return {"t": t} | numbers


for name, denoiser in MODELS.items():
    eqd.save_model(f"{FOLDER}/{name}.safetensors", denoiser, overwrite=True)
with open(f"{FOLDER}/answers.json", "w") as file:
    json.dump({name: answer(name, denoiser) for name, denoiser in MODELS.items()}, file)
