"""Losses in continuous time: the official numbers and gradients, and the papers' weightings."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden
from test_parameterisation_edm import edm_toy
from toys import quick_jit, sde_denoiser, without_rescaling

import eqdiff as eqd
from eqdiff._denoiser import time_input


SDE_LOSSES, EDM_LOSSES = "public_sde_losses", "public_edm_losses"
SDES = {"VESDE": eqd.VESDE(), "VPSDE": eqd.VPSDE(), "subVPSDE": eqd.SubVPSDE()}
SCHEDULE = without_rescaling(eqd.linear_schedule(1000))
PROCESSES = {
    **SDES,
    "edm": eqd.EDMSDE(),
    "cosine": eqd.CosineVPSDE(),
    "flow": eqd.RectifiedFlow(),
    "schedule": eqd.cosine_schedule(50),
}
processes = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


class Discrete(eqx.Module):
    """How score_sde reads a network with `continuous=False` as a score, at a real t (N = 1000)."""

    net: eqx.Module
    exploding: bool = eqx.field(static=True)

    def __call__(self, c_noise, x, args=None, *, key=None):
        if self.exploding:
            # c_noise counts the levels from the noisiest; the toy scales its argument by 0.05.
            return self.net(0.05 * c_noise, x)
        # The input is 999 t, but the output is divided by the schedule's level at the whole step
        # below.
        index = jnp.floor(c_noise).astype(jnp.int32)
        return -self.net(c_noise, x) / SCHEDULE.sigma(index).astype(x.dtype)


def discrete_denoiser(name, parameters, dtype=jnp.float32):
    process = SDES[name]
    net = sde_denoiser(process, parameters, dtype).net
    if name == "subVPSDE":
        # Has no schedule: the official code reads it as in continuous time.
        return eqd.Denoiser(net, process)
    if name == "VESDE":
        place = lambda process, t: jnp.rint(999 * (1 - t))  # noqa: E731
        return eqd.Denoiser(Discrete(net, True), process, eqd.PredictScore(), c_noise=place)
    return eqd.Denoiser(Discrete(net, False), process, eqd.PredictScore())


def batch_loss(denoiser, where, t, x0, z, weighting):
    """The official mean over a batch, and its gradient in the toy's parameters."""

    @jax.jit
    @jax.value_and_grad
    def loss(parameters):
        model = eqx.tree_at(where, denoiser, parameters)

        def one(t, x0, z):
            return eqd.score_matching(eqd.predict(model, t, x0, noise=z), weighting)

        return jnp.mean(jax.vmap(one)(t, x0, z))

    return loss(where(denoiser))


def inner(denoiser):
    net = denoiser.net
    return net.net.parameters if isinstance(net, Discrete) else net.parameters


def check(value, gradient, case, dims, reduce_mean):
    # The official other reduction is half the sum over dimensions.
    factor = 1 if reduce_mean else dims / 2
    assert_golden(factor * value, SDE_LOSSES, f"{case}/loss")
    assert_golden(factor * gradient, SDE_LOSSES, f"{case}/grad")


@pytest.mark.parametrize("likelihood", [0, 1])
@pytest.mark.parametrize("name", SDES)
def test_golden_score_matching_of_discrete_networks(name, likelihood):
    g = load_golden(SDE_LOSSES)
    x0 = jnp.asarray(g[f"{name}/in/batch"], jnp.float32)
    denoiser = discrete_denoiser(name, g[f"{name}/in/p"])
    weighting = eqd.LikelihoodWeighting() if likelihood else eqd.NoiseWeighting()
    case = f"{name}/sde_cont0_lw{likelihood}_rm"
    t, z = (jnp.asarray(g[f"{case}1/{key}"], jnp.float32) for key in ("t", "z"))
    value, gradient = batch_loss(denoiser, inner, t, x0, z, weighting)
    for reduce_mean in (1, 0):
        # Both reductions were given the same times; the noise differs.
        if reduce_mean == 0:
            z = jnp.asarray(g[f"{case}0/z"], jnp.float32)
            value, gradient = batch_loss(denoiser, inner, t, x0, z, weighting)
        check(value, gradient, f"{case}{reduce_mean}", x0[0].size, reduce_mean)


@pytest.mark.parametrize("reduce_mean", [1, 0])
def test_golden_smld_is_score_matching_at_its_levels(reduce_mean, x64):
    g, case = load_golden(SDE_LOSSES), f"VESDE/smld_rm{reduce_mean}"
    x0, z = (jnp.asarray(g[k], float) for k in ("VESDE/in/batch", f"{case}/z"))
    # The official labels index the levels from the noisiest down. The table itself is float32,
    # which the loss feels.
    level = load_golden("public_sde_basics")["VESDE/tables/discrete_sigmas"][
        999 - g[f"{case}/labels"]
    ]
    t = jax.vmap(SDES["VESDE"].time)(-2 * jnp.log(jnp.asarray(level, float)))
    np.testing.assert_allclose(t, (999 - g[f"{case}/labels"]) / 999, rtol=1e-5)
    denoiser = discrete_denoiser("VESDE", g["VESDE/in/p"], float)
    value, gradient = batch_loss(denoiser, inner, t, x0, z, eqd.NoiseWeighting())
    check(np.float32(value), np.asarray(gradient, np.float32), case, x0[0].size, reduce_mean)


@pytest.mark.parametrize("reduce_mean", [1, 0])
def test_golden_ddpm_is_score_matching_on_the_schedule(reduce_mean):
    g, case = load_golden(SDE_LOSSES), f"VPSDE/ddpm_rm{reduce_mean}"
    x0, z = (jnp.asarray(g[k], jnp.float32) for k in ("VPSDE/in/batch", f"{case}/z"))
    t = jnp.asarray(g[f"{case}/labels"], jnp.int32)
    denoiser = eqd.Denoiser(sde_denoiser(SDES["VPSDE"], g["VPSDE/in/p"], jnp.float32).net, SCHEDULE)
    value, gradient = batch_loss(denoiser, inner, t, x0, z, eqd.NoiseWeighting())
    check(value, gradient, case, x0[0].size, reduce_mean)


class EDMToy(eqx.Module):
    parameters: jax.Array
    scaled: bool = eqx.field(static=True)

    def __call__(self, c, x, args=None, *, key=None):
        out = edm_toy(self.parameters)(c, x, args)
        # VEPrecond's network is σ times the score, and takes log(σ/2).
        return out / (2 * jnp.exp(c)) if self.scaled else out


def edm_case(case, parameters):
    """The denoiser, how its time is found from the official first draw, and the weighting."""
    draw = {
        "0_EDMLoss": lambda n: jnp.exp(1.2 * n - 1.2),
        "1_EDMLoss": lambda n: jnp.exp(1.0 * n - 0.4),
        "6_EDMLoss": lambda n: jnp.exp(1.2 * n - 1.2),
        # VP draws a time, VE a place between the logarithms of its ends.
        "2_VPLoss": lambda u: 1 + u * (1e-5 - 1),
        "3_VPLoss": lambda u: 1 + u * (1e-3 - 1),
        "4_VELoss": lambda u: 0.02 * (100 / 0.02) ** u,
        "5_VELoss": lambda u: 0.05 * (40 / 0.05) ** u,
    }[case]
    net, edm = EDMToy(parameters, "VELoss" in case), eqd.EDMSDE()
    if case in ("0_EDMLoss", "1_EDMLoss"):
        return eqd.Denoiser(net, edm, eqd.EDMPreconditioning()), draw, eqd.EDMWeighting()
    if "VELoss" in case:
        denoiser = eqd.Denoiser(net, edm, eqd.PredictScore(), c_noise=eqd.LogNoise(0.5))
        return denoiser, draw, eqd.NoiseWeighting()
    if "VPLoss" in case:
        # The loss's own β is not the network's: it only draws σ, which the network's time then
        # reads.
        process = eqd.VPSDE(0.1, 20.0)
        other = process if case == "2_VPLoss" else eqd.VPSDE(0.2, 18.2)
        level = lambda u: jnp.exp(-0.5 * other.log_snr(draw(u)))  # noqa: E731
        return eqd.Denoiser(net, process), level, eqd.NoiseWeighting()
    nearest = lambda process, t: jnp.rint(t)  # noqa: E731
    denoiser = eqd.Denoiser(net, eqd.cosine_schedule(1000), c_noise=nearest)
    return denoiser, draw, eqd.EDMWeighting()


@pytest.mark.parametrize(
    "case",
    ["0_EDMLoss", "1_EDMLoss", "2_VPLoss", "3_VPLoss", "4_VELoss", "5_VELoss", "6_EDMLoss"],
)
def test_golden_edm_losses(case, x64):
    g = load_golden(EDM_LOSSES)
    denoiser, level, weighting = edm_case(case, jnp.asarray(g["in/p"], float))
    images, labels = (jnp.asarray(g[f"in/{key}"], float) for key in ("images", "labels"))
    noise, draws = (jnp.asarray(g[f"{case}/{key}"], float) for key in ("noise", "draw0"))
    process = denoiser.process
    t = jax.vmap(lambda n: process.time(-2 * jnp.log(level(n))))(draws[:, 0, 0, 0])

    @jax.jit
    @ft.partial(jax.value_and_grad, has_aux=True)
    def loss(parameters):
        model = eqx.tree_at(lambda d: d.net.parameters, denoiser, parameters)

        def one(t, x0, z, args):
            p = eqd.predict(model, t, x0, args, noise=z)
            squared = (p.estimate.noise - p.noise) ** 2
            c_noise = time_input(process, model.c_noise, t, like=x0)
            each = weighting.on_noise(process, t) * squared, eqd.l_simple(p), c_noise
            return eqd.score_matching(p, weighting), each

        losses, each = jax.vmap(one)(t, images, noise, labels)
        return jnp.sum(losses) * images[0].size, (losses, *each)

    (_, (losses, elements, simple, c_noise)), gradient = loss(denoiser.net.parameters)
    assert_golden(elements.astype(np.float32), EDM_LOSSES, f"{case}/loss")
    assert_golden(gradient.astype(np.float32), EDM_LOSSES, f"{case}/grad")
    assert_golden(c_noise.astype(np.float32), EDM_LOSSES, f"{case}/c_noise")
    np.testing.assert_allclose(losses, jnp.mean(elements, (1, 2, 3)), rtol=1e-12)
    # The weighting is the parameterisation's own: the error of the raw output, unweighted.
    if case != "6_EDMLoss" and "VELoss" not in case:
        np.testing.assert_allclose(simple, losses, rtol=1e-9)


def interior(process):
    if isinstance(process, eqd.Schedule):
        return jnp.asarray([0, 10, 25, 48], jnp.int32)
    return process.t0 + (process.t1 - process.t0) * jnp.asarray([0.01, 0.2, 0.5, 0.95])


@processes
def test_a_weighting_on_the_data_is_one_on_the_noise(process, getkey, x64):
    """As the papers write them: weights on ‖x̂0 − x0‖², for any error that a denoiser may make."""
    x0, noise, output = jax.random.normal(getkey(), (3, 4))
    denoiser = eqd.Denoiser(lambda *_, key: output, process)
    weightings = {
        "edm": (eqd.EDMWeighting(0.6), lambda snr: snr + 1 / 0.6**2),
        "min_snr": (eqd.MinSNRWeighting(), lambda snr: jnp.minimum(snr, 5)),
        "min_snr_1": (eqd.MinSNRWeighting(jnp.asarray(1.0)), lambda snr: jnp.minimum(snr, 1)),
        "noise": (eqd.NoiseWeighting(), lambda snr: snr),
    }

    @quick_jit
    @jax.vmap
    def run(t):
        p = eqd.predict(denoiser, t, x0, noise=noise)
        snr = (process.alpha(t) / process.sigma(t)) ** 2
        on_data = jnp.mean((p.estimate.x0 - x0) ** 2)
        return {
            name: (eqd.score_matching(p, w), of_snr(snr) * on_data)
            for name, (w, of_snr) in weightings.items()
        }

    for name, (actual, truth) in run(interior(process)).items():
        np.testing.assert_allclose(actual, truth, rtol=1e-8, err_msg=name)


@pytest.mark.parametrize("process", [eqd.VPSDE(), eqd.CosineVPSDE()], ids=["vp", "cosine"])
def test_min_snr_for_each_target(process, getkey, x64):
    """Hang et al.: min(SNR, γ)/SNR on ε, min(SNR, γ)/(SNR + 1) on v; all of one loss."""
    x0, noise, output = jax.random.normal(getkey(), (3, 4))
    gamma = 2.0
    for t in np.asarray(interior(process))[:2]:
        snr = (float(process.alpha(t)) / float(process.sigma(t))) ** 2
        for parameterisation, weight in (
            (eqd.PredictNoise(), min(snr, gamma) / snr),
            (eqd.PredictData(), min(snr, gamma)),
            (eqd.PredictVelocity(), min(snr, gamma) / (snr + 1)),
        ):
            denoiser = eqd.Denoiser(lambda *_, key: output, process, parameterisation)
            p = eqd.predict(denoiser, t, x0, noise=noise)
            actual = eqd.score_matching(p, eqd.MinSNRWeighting(gamma))
            np.testing.assert_allclose(actual, weight * eqd.l_simple(p), rtol=1e-8)


def test_sigmoid_weighting_is_one_integral_for_every_process(x64):
    """∫ w dt = ∫ sigmoid(b − λ) dλ, whichever (α, σ) runs from λ = 4 to −4."""
    bias = -0.5
    high, low = 4.0, -4.0
    truth = np.logaddexp(0, bias - low) - np.logaddexp(0, bias - high)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    weighting = eqd.SigmoidWeighting(bias)
    for process in (eqd.SubVPSDE(), eqd.CosineVPSDE(), eqd.EDMSDE()):
        start, end = (float(process.time(jnp.asarray(level))) for level in (high, low))
        # EDM's times span decades: integrate in log t.
        u = 0.5 * (np.log(end) - np.log(start)) * (nodes + 1) + np.log(start)
        t = jnp.asarray(np.exp(u))
        rate = np.asarray(quick_jit(jax.vmap(lambda t, p=process: weighting.on_noise(p, t)))(t))
        total = np.sum(weights * rate * np.exp(u)) * 0.5 * (np.log(end) - np.log(start))
        np.testing.assert_allclose(total, truth, rtol=1e-6)
    p, t = eqd.VPSDE(), 0.4
    bound = eqd.LikelihoodWeighting().on_noise(p, t)
    np.testing.assert_allclose(eqd.SigmoidWeighting(60.0).on_noise(p, t), bound, rtol=1e-12)


@pytest.mark.parametrize(
    ("process", "parameterisation", "square"),
    [
        (eqd.VPSDE(), eqd.PredictVelocity(), 1.0),
        (eqd.LearnedVPSDE(), eqd.PredictVelocity(), 1.0),
        (eqd.RectifiedFlow(), eqd.PredictFlow(), 2.0),
        (eqd.EDMSDE(), eqd.PredictNoise(), 1.0),
    ],
    ids=["vp", "learned", "flow", "edm"],
)
def test_velocity_weighting_is_l_simple_of_the_normalised_velocity(
    process, parameterisation, square, getkey, x64
):
    x0, noise, output = jax.random.normal(getkey(), (3, 4))
    denoiser = eqd.Denoiser(lambda *_, key: output, process, parameterisation)
    for t in (0.1, 0.7):
        p = eqd.predict(denoiser, t, x0, noise=noise)
        actual = eqd.score_matching(p, eqd.VelocityWeighting())
        np.testing.assert_allclose(actual, eqd.l_simple(p) / square, rtol=1e-9)


@pytest.mark.parametrize("process", [eqd.VPSDE(), eqd.RectifiedFlow()], ids=["vp", "flow"])
def test_weightings_are_finite_and_accurate_in_float32(process, x64):
    weightings = (
        *(eqd.NoiseWeighting(), eqd.EDMWeighting(), eqd.MinSNRWeighting()),
        *(eqd.LikelihoodWeighting(), eqd.SigmoidWeighting(1.0), eqd.VelocityWeighting()),
    )
    ends = jnp.asarray([process.t0, process.t1, 0.5 * process.t1], jnp.float32)
    run = quick_jit(jax.vmap(lambda t: [w.on_noise(process, t) for w in weightings]))
    for low, high in zip(run(ends), run(ends.astype(float)), strict=True):
        assert np.all(np.isfinite(low)) and np.all(np.asarray(low) > 0)
        np.testing.assert_allclose(low, high, rtol=2e-5)


def test_flow_matching_is_l_simple_with_flow(getkey, x64):
    """‖F − (ε − x0)‖² on a rectified flow."""
    process = eqd.RectifiedFlow()
    x0, noise, output = jax.random.normal(getkey(), (3, 4))
    denoiser = eqd.Denoiser(lambda *_, key: output, process, eqd.PredictFlow())
    p = eqd.predict(denoiser, 0.3, x0, noise=noise)
    np.testing.assert_allclose(eqd.l_simple(p), jnp.mean((output - (noise - x0)) ** 2), rtol=1e-10)
    # Since x = (1 − t) x̂0 + t ε̂ for estimate and truth alike, F − v = (ε̂ − ε)/(1 − t).
    np.testing.assert_allclose(eqd.l_simple(p), eqd.score_matching(p) / (1 - 0.3) ** 2, rtol=1e-9)


REFUSED = [
    (lambda: eqd.EDMWeighting(0.0), r"EDMWeighting\(sigma_data=0.0\)"),
    (lambda: eqd.MinSNRWeighting(-1.0), r"MinSNRWeighting\(gamma=-1.0\)"),
]


@pytest.mark.parametrize(("make", "match"), REFUSED)
def test_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
