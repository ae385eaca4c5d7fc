"""Files of format 1 and 2, written by eqdiff 0.1.0, with what each denoiser answered."""
import json, numpy as np, jax, jax.numpy as jnp, equinox as eqx, sys
import eqdiff as eqd
out = sys.argv[1]
key = jax.random.key(0)
def mlp(out_size=2): return eqd.nn.MLP(2, out_size, width=8, depth=1, key=key)
sched = eqd.respace(eqd.cosine_schedule(40), [0, 3, 7, 12, 20, 31, 39])
unet = eqd.nn.UNet(1, 2, 8, 1, (1, 2), (2,), num_heads=1, num_classes=3, norm_groups=4, key=key)
D = eqd.Denoiser
models = {
 "vp_noise": D(mlp(), eqd.VPSDE(0.2, 15.0, t0=1e-4), eqd.Noise()),
 "ve_score": D(mlp(), eqd.VESDE(0.02, 30.0), eqd.Score()),
 "sub_vp_data": D(mlp(), eqd.SubVPSDE(), eqd.Data()),
 "cosine_velocity": D(mlp(), eqd.CosineVPSDE(log_snr_shift=-1.0), eqd.Velocity()),
 "edm_edm": D(mlp(), eqd.EDMSDE(), eqd.EDM(0.6)),
 "flow_flow": D(mlp(), eqd.RectifiedFlow(), eqd.Flow()),
 "schedule_previous_mean": D(mlp(), sched, eqd.PreviousMean(), variance=eqd.FixedSmall()),
 "schedule_learned": D(mlp(4), sched, eqd.Noise(), variance=eqd.Learned()),
 "schedule_analytic": D(mlp(), sched, eqd.Noise(), variance=eqd.AnalyticVariance(np.linspace(0.9, 0.1, 40))),
 "continuous_schedule": D(mlp(), eqd.cosine_schedule(40).continuous(), eqd.Noise()),
 "scaled_time": D(mlp(), eqd.VPSDE(), label=eqd.ScaledTime(499.0)),
 "log_noise_level": D(mlp(), eqd.EDMSDE(), eqd.EDM(), label=eqd.LogNoiseLevel(eqd.EDMSDE(), 0.5)),
 "unet_learned_range": D(unet, eqd.Schedule(eqd.linear_schedule(50).betas, labels=np.arange(50)), variance=eqd.LearnedRange()),
}
answers = {}
for name, d in models.items():
    eqd.save_model(f"{out}/{name}.safetensors", d, overwrite=True)
    whole = isinstance(d.process, eqd.Schedule)
    t = 3 if whole else (3.25 if name == "continuous_schedule" else 0.37)
    image = name.startswith("unet")
    x = jnp.linspace(-1, 1, 64, dtype=jnp.float32).reshape(1, 8, 8) if image else jnp.asarray([0.3, -0.7], jnp.float32)
    args = jnp.asarray(1) if image else None
    e = d(t, x, args)
    answers[name] = dict(t=t, x0=np.asarray(e.x0).ravel().tolist(), noise=np.asarray(e.noise).ravel().tolist(),
        raw_variance=None if e.raw_variance is None else np.asarray(e.raw_variance).ravel().tolist())
json.dump(answers, open(f"{out}/answers.json","w"), indent=1)
