"""Losses against the official numbers and their gradients, identities and call counts."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden
from toys import (
    idiff_denoiser,
    PARAMETERISATIONS,
    quick_jit,
    sde_denoiser,
    VARIANCES,
    without_rescaling,
)

import eqdiff as eqd


LOSSES = "public_idiff_losses"
SDE_LOSSES = "public_sde_losses"
SCHEDULES = {
    "base_cosine1000": without_rescaling(eqd.cosine_schedule(1000)),
    "spaced_cosine4000_100_rescaled": eqd.respace(
        eqd.cosine_schedule(4000), eqd.section_timesteps(4000, (100,))
    ),
}
schedules = pytest.mark.parametrize("name", SCHEDULES)


def golden_float32(actual, key):
    """Held to the official float32 error, whatever precision ours had (gradients are stored as
    float64).
    """
    assert_golden(np.asarray(actual, np.float32), LOSSES, key)


def terms(denoiser, t, x0, noise):
    """What improved-diffusion's `LossType`s are made of, per example."""
    p = eqd.predict(denoiser, t, x0, noise=noise)
    values = {"mse": eqd.l_simple(p), "kl": eqd.bound_term(p)}
    if denoiser.variance.learned:
        values["vb"] = eqd.bound_term(eqd.stop_mean(p))
    return values


@schedules
@pytest.mark.parametrize("mean_type", PARAMETERISATIONS)
@pytest.mark.parametrize("variance_type", VARIANCES)
def test_golden_training_losses(name, mean_type, variance_type):
    """MSE, RESCALED_MSE, KL and RESCALED_KL are compositions; values and gradients are the official
    ones.
    """
    g, schedule = load_golden(LOSSES), SCHEDULES[name]
    base = f"losses/{name}"
    x0, noise = (jnp.asarray(g[f"{base}/{key}"], float) for key in ("x0", "noise"))
    t = jnp.asarray(g[f"{base}/t"], jnp.int32)
    denoiser = idiff_denoiser(schedule, g[f"{base}/toy_abcd"], mean_type, variance_type, float)

    def batch(parameters):
        model = eqx.tree_at(lambda d: d.net.parameters, denoiser, parameters)
        values = jax.vmap(lambda *a: terms(model, *a))(t, x0, noise)
        return jax.tree.map(jnp.mean, values), values

    gradients, values = jax.jit(jax.jacrev(batch, has_aux=True))(denoiser.net.parameters)
    steps, learned = schedule.num_steps, int(denoiser.variance.learned)
    # loss type -> weights of (mse, vb with the mean frozen, kl with nothing frozen)
    types = {
        "MSE": (1, learned, 0),
        "RESCALED_MSE": (1, learned * steps / 1000, 0),
        "KL": (0, 0, 1),
        "RESCALED_KL": (0, 0, steps),
    }
    for loss_type, weights in types.items():
        case = f"{base}/{loss_type}-{mean_type}-{variance_type}"
        for kind, source in (("loss", values), ("grad", gradients)):
            total = sum(
                weight * source[name]
                for name, weight in zip(("mse", "vb", "kl"), weights, strict=True)
                if weight
            )
            golden_float32(total, f"{case}/{kind}")
        if weights[0]:
            golden_float32(values["mse"], f"{case}/mse")
        if weights[1]:
            golden_float32(weights[1] * values["vb"], f"{case}/vb")
    # The frozen bound does not reach the mean's parameters, and does reach a learned variance's.
    if learned:
        assert np.all(gradients["vb"][:4] == 0) and np.all(gradients["vb"][4:] != 0)


@schedules
@pytest.mark.parametrize("mean_type", ["EPSILON", "START_X"])
@pytest.mark.parametrize("variance_type", VARIANCES)
def test_golden_vb_terms(name, mean_type, variance_type):
    """`_vb_terms_bpd` at an x_t given outright: the noise that leads there is what is fed."""
    g, schedule, base = load_golden(LOSSES), SCHEDULES[name], f"vb/{name}"
    x0, xt = (jnp.asarray(g[f"{base}/{key}"], float) for key in ("x0", "xt"))
    t = jnp.asarray(g[f"{base}/t"], jnp.int32)
    abcd = g["losses/base_cosine1000/toy_abcd"]
    denoiser = idiff_denoiser(schedule, abcd, mean_type, variance_type, float)

    def one(denoiser, t, x0, xt):
        alpha, sigma = schedule.levels(t, like=x0)
        noise = (xt - alpha * x0) / sigma
        # The record by hand, so that x_t is exactly the one given, not rounded there and back.
        estimate = denoiser(t, xt)
        p = eqd.Prediction(
            t, x0, noise, xt, estimate, schedule, denoiser.parameterisation, denoiser.variance
        )
        return eqd.bound_term(p), jnp.mean(p.estimate.x0)

    @jax.jit
    @jax.vmap
    def run(t, x0, xt):
        return one(denoiser, t, x0, xt), one(eqd.Clip(denoiser), t, x0, xt)

    for clip, (output, x0_mean) in enumerate(run(t, x0, xt)):
        case = f"{base}/{mean_type}-{variance_type}-clip{clip}"
        golden_float32(output, f"{case}/output")
        golden_float32(x0_mean, f"{case}/pred_xstart_mean")


@pytest.mark.parametrize("likelihood", [0, 1])
@pytest.mark.parametrize("name", ["VESDE", "VPSDE", "subVPSDE"])
def test_golden_score_matching(name, likelihood):
    g = load_golden(SDE_LOSSES)
    sde = {"VESDE": eqd.VESDE(), "VPSDE": eqd.VPSDE(), "subVPSDE": eqd.SubVPSDE()}[name]
    x0 = jnp.asarray(g[f"{name}/in/batch"], jnp.float32)
    denoiser = sde_denoiser(sde, g[f"{name}/in/p"], jnp.float32)
    weighting = eqd.LikelihoodWeighting() if likelihood else eqd.NoiseWeighting()
    dims = x0[0].size

    @jax.jit
    @jax.value_and_grad
    def loss(parameters, t, z):
        model = eqx.tree_at(lambda d: d.net.parameters, denoiser, parameters)

        def one(t, x0, z):
            return eqd.score_matching(eqd.predict(model, t, x0, noise=z), weighting)

        return jnp.mean(jax.vmap(one)(t, x0, z))

    for reduce_mean in (1, 0):
        case = f"{name}/sde_cont1_lw{likelihood}_rm{reduce_mean}"
        t, z = (jnp.asarray(g[f"{case}/{key}"], jnp.float32) for key in ("t", "z"))
        value, gradient = loss(denoiser.net.parameters, t, z)
        # The official other reduction is half the sum over dimensions.
        factor = 1 if reduce_mean else dims / 2
        assert_golden(factor * value, SDE_LOSSES, f"{case}/loss")
        assert_golden(factor * gradient, SDE_LOSSES, f"{case}/grad")


@pytest.mark.parametrize("reduce_mean", [1, 0])
def test_golden_ddpm_loss_is_l_simple(reduce_mean):
    """score_sde's discrete loss under VP regresses on the noise, at DDPM's own levels."""
    g, case = load_golden(SDE_LOSSES), f"VPSDE/ddpm_rm{reduce_mean}"
    net = sde_denoiser(eqd.VPSDE(), g["VPSDE/in/p"], jnp.float32).net
    denoiser = eqd.Denoiser(net, without_rescaling(eqd.linear_schedule(1000)))
    x0, z = (jnp.asarray(g[k], jnp.float32) for k in ("VPSDE/in/batch", f"{case}/z"))
    t = jnp.asarray(g[f"{case}/labels"], jnp.int32)
    losses = jax.jit(jax.vmap(lambda t, x, z: eqd.l_simple(eqd.predict(denoiser, t, x, noise=z))))(
        t, x0, z
    )
    factor = 1 if reduce_mean else x0[0].size / 2
    assert_golden(factor * jnp.mean(losses), SDE_LOSSES, f"{case}/loss")


PROCESSES = {"vp": eqd.VPSDE(), "sub_vp": eqd.SubVPSDE(), "ve": eqd.VESDE()}


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_score_matching_by_its_definition(process, getkey, x64):
    """Written with scores, as in the paper, at a time where nothing is small."""
    t, x0 = 0.6, jax.random.normal(getkey(), (4,))
    p = eqd.predict(eqd.GaussianDenoiser(process, 0.3, 0.5), t, x0, key=getkey())
    sigma, g = process.sigma(t), process.diffusion(t)
    score = -p.estimate.noise / sigma
    truth = -(p.x - process.alpha(t) * x0) / sigma**2
    squared = jnp.mean((score - truth) ** 2)
    np.testing.assert_allclose(eqd.score_matching(p), sigma**2 * squared, rtol=1e-9)
    weighted = eqd.score_matching(p, eqd.LikelihoodWeighting())
    np.testing.assert_allclose(weighted, g**2 * squared, rtol=1e-9)


def test_minimal_loss_of_a_gaussian(getkey, x64):
    """E‖ε̂ − ε‖² = α²s²/(α²s² + σ²) for the exact denoiser, and any other does worse."""
    process, t = eqd.VPSDE(), 0.3
    keys = jax.random.split(getkey(), 4000)

    def loss(std, key):
        data_key, key = jax.random.split(key)
        x0 = 0.2 + 0.7 * jax.random.normal(data_key, (8,))
        return eqd.l_simple(eqd.predict(eqd.GaussianDenoiser(process, 0.2, std), t, x0, key=key))

    values = {
        std: np.asarray(quick_jit(jax.vmap(lambda k, s=std: loss(s, k)))(keys))
        for std in (0.7, 0.5)
    }
    a2, s2 = float(process.alpha(t)) ** 2 * 0.49, float(process.sigma(t)) ** 2
    error = values[0.7].std() / np.sqrt(4000)
    assert abs(values[0.7].mean() - a2 / (a2 + s2)) < 4 * error
    assert values[0.5].mean() > values[0.7].mean() + 4 * error


@pytest.mark.parametrize(
    "parameterisation",
    [
        eqd.PredictNoise(),
        eqd.PredictData(),
        eqd.PredictVelocity(),
        eqd.PredictScore(),
        eqd.PreviousMean(),
    ],
    ids=lambda p: type(p).__name__,
)
def test_l_simple_is_the_squared_error_of_the_raw_output(parameterisation, getkey, x64):
    """Whatever the network predicts, and although only (x̂0, ε̂) are handed on."""
    schedule = eqd.cosine_schedule(50)
    x0, noise, output = jax.random.normal(getkey(), (3, 6))
    denoiser = eqd.Denoiser(lambda *a, key: output, schedule, parameterisation)

    @quick_jit
    @jax.vmap
    def run(t):
        p = eqd.predict(denoiser, t, x0, noise=noise)
        target = parameterisation.target(schedule, t, x0, noise)
        return eqd.l_simple(p), jnp.mean((output - target) ** 2)

    actual, truth = run(jnp.asarray([0, 1, 25, 49]))
    np.testing.assert_allclose(actual, truth, rtol=1e-7)


def test_bound_terms_by_their_definition(getkey, x64):
    """KL of two Gaussians given by mean and variance, each computed the long way."""
    schedule = eqd.cosine_schedule(50)
    noise, raw = jax.random.uniform(getkey(), (2, 6), minval=-1)
    # On the levels of 17 and of 5 greys.
    x0 = jnp.asarray([-1.0, -0.5, 0.0, 0.5, 1.0, -0.5])
    net = lambda c_noise, x, args, *, key: jnp.concatenate([jnp.tanh(x), raw])  # noqa: E731
    denoiser = eqd.Denoiser(net, schedule, variance=eqd.LearnedRange())
    for t in (1, 20, 49):
        p = eqd.predict(denoiser, t, x0, noise=noise)
        mean1 = schedule.posterior_mean(t, x0, p.x)
        mean2 = schedule.posterior_mean(t, p.estimate.x0, p.x)
        v1 = schedule.posterior_variance[t]
        v2 = jnp.exp(eqd.LearnedRange().log_variance(schedule, t, raw))
        kl = 0.5 * (v1 / v2 - 1 - jnp.log(v1 / v2) + (mean1 - mean2) ** 2 / v2)
        bits = eqd.bound_term(p, levels=17)
        np.testing.assert_allclose(bits, jnp.mean(kl) / np.log(2), rtol=1e-7)
    p = eqd.predict(denoiser, 0, x0, noise=noise)
    log_std = 0.5 * eqd.LearnedRange().log_variance(schedule, 0, raw)
    log_p = eqd.discretised_gaussian_log_likelihood(x0, p.estimate.x0, log_std, levels=17)
    np.testing.assert_allclose(
        eqd.bound_term(p, levels=17), -jnp.mean(log_p) / np.log(2), rtol=1e-10
    )
    assert float(eqd.bound_term(p, levels=5)) != float(eqd.bound_term(p, levels=17))


def test_the_decoder_may_be_the_exact_one(getkey, x64):
    """The two differ by the tanh approximation of Φ alone, and only at t = 0."""
    schedule, exact = eqd.cosine_schedule(50), eqd.discretised_gaussian_log_likelihood_exact
    x0 = jnp.linspace(-1, 1, 17)
    denoiser = eqd.Denoiser(lambda c_noise, x, args, *, key: 0.1 * x, schedule)
    p = eqd.predict(denoiser, 0, x0, key=getkey())
    log_std = jnp.full(17, 0.5 * eqd.FixedLarge().log_variance(schedule, 0, None))
    truth = -jnp.mean(exact(x0, p.estimate.x0, log_std, levels=17)) / np.log(2)
    for scale, loss in ((1, eqd.bound_term), (50, eqd.l_vlb)):
        np.testing.assert_allclose(loss(p, levels=17, decoder=exact), scale * truth, rtol=1e-10)
        official = loss(p, levels=17)
        assert 0 < abs(official - scale * truth) < 0.05 * scale * truth
    p = eqd.predict(denoiser, 20, x0, key=getkey())
    assert eqd.bound_term(p, levels=17, decoder=exact) == eqd.bound_term(p, levels=17)


def test_stop_mean_lets_the_bound_reach_only_the_variance(getkey):
    class Two(eqx.Module):
        mean: jax.Array
        variance: jax.Array

        def __call__(self, c_noise, x, args, *, key=None):
            return jnp.concatenate([self.mean * x, self.variance * jnp.ones_like(x)])

    schedule, x0, key = eqd.cosine_schedule(50), jnp.linspace(-1, 1, 6), getkey()
    losses = {
        "frozen": lambda p: eqd.l_vlb(eqd.stop_mean(p)),
        "free": eqd.l_vlb,
        "hybrid": eqd.l_hybrid,
        "heavy": lambda p: eqd.l_hybrid(p, vlb_weight=2.0),
        "simple": eqd.l_simple,
        "term": eqd.bound_term,
    }

    @quick_jit
    @jax.vmap
    def run(t):
        def all_of(net):
            denoiser = eqd.Denoiser(net, schedule, variance=eqd.LearnedRange())
            p = eqd.predict(denoiser, t, x0, key=key)
            values = {name: loss(p) for name, loss in losses.items()}
            return values, values

        return jax.jacrev(all_of, has_aux=True)(Two(jnp.asarray(0.3), jnp.asarray(0.2)))

    gradient, value = run(jnp.asarray([0, 1, 30]))
    assert np.all(gradient["frozen"].mean == 0) and np.all(gradient["frozen"].variance != 0)
    assert np.all(gradient["free"].mean != 0) and np.all(gradient["simple"].variance == 0)
    for actual, truth in (
        (gradient["free"].variance, gradient["frozen"].variance),
        (gradient["hybrid"].mean, gradient["simple"].mean),
        (gradient["hybrid"].variance, 1e-3 * gradient["frozen"].variance),
        # The library's own names for the compositions: stopping a gradient changes no value.
        (value["frozen"], value["free"]),
        (value["free"], 50 * value["term"]),
        (value["hybrid"], value["simple"] + 0.05 * value["term"]),
        (value["heavy"], value["simple"] + 100 * value["term"]),
    ):
        np.testing.assert_allclose(actual, truth, rtol=1e-4)


def test_one_network_call_per_prediction(getkey):
    calls = []

    def net(c_noise, x, args, *, key):
        calls.append(key)
        return jnp.concatenate([x, x])

    denoiser = eqd.Denoiser(net, eqd.cosine_schedule(50), variance=eqd.LearnedRange())
    p = eqd.predict(denoiser, 3, jnp.ones(4), key=getkey())
    for loss in (eqd.l_simple, eqd.bound_term, eqd.l_vlb, eqd.l_hybrid, eqd.score_matching):
        loss(p)
    assert len(calls) == 1


def test_the_noise_and_the_dropout_draw_from_different_keys(getkey):
    keys = []

    def net(c_noise, x, args, *, key):
        keys.append(key)
        return jax.random.normal(key, x.shape, x.dtype)

    key = getkey()
    p = eqd.predict(eqd.Denoiser(net, eqd.VPSDE()), 0.5, jnp.zeros(1000), key=key)
    assert abs(np.corrcoef(p.noise, p.estimate.noise)[0, 1]) < 0.15
    np.testing.assert_allclose(p.x, eqd.VPSDE().perturb(0.5, p.x0, p.noise))
    again = eqd.predict(eqd.Denoiser(net, eqd.VPSDE()), 0.5, jnp.zeros(1000), key=key)
    np.testing.assert_array_equal(p.noise, again.noise)
    given = eqd.predict(eqd.Denoiser(net, eqd.VPSDE()), 0.5, p.x0, noise=p.noise, key=keys[0])
    assert eqx.tree_equal(given.estimate, p.estimate)


def predicted(denoiser, t):
    return eqd.predict(denoiser, t, jnp.ones(3), noise=jnp.ones(3))


ON_VP = predicted(eqd.GaussianDenoiser(eqd.VPSDE()), 0.5)
ON_SCHEDULE = predicted(eqd.GaussianDenoiser(eqd.cosine_schedule(9)), 5)
BETWEEN = predicted(
    eqd.Denoiser(lambda *a, key: jnp.zeros(6), eqd.cosine_schedule(9), variance=eqd.LearnedRange()),
    5.0,
)
REFUSED = [
    *(
        (lambda loss=loss: loss(ON_VP), "discrete schedule, but the process is VPSDE.*discretise")
        for loss in (eqd.bound_term, eqd.l_vlb, eqd.l_hybrid)
    ),
    *(
        (lambda loss=loss: loss(BETWEEN), r"whole times of a schedule.*jnp\.rint")
        for loss in (eqd.bound_term, eqd.l_vlb, eqd.l_hybrid)
    ),
    *(
        (lambda loss=loss: loss(ON_SCHEDULE, levels=1), "levels=1.*whole number of at least 2")
        for loss in (eqd.bound_term, eqd.l_vlb)
    ),
    (lambda: eqd.l_hybrid(ON_SCHEDULE), "which the bound cannot teach.*LearnedRange"),
]


@pytest.mark.parametrize(("call", "match"), REFUSED)
def test_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_a_schedule_has_the_likelihood_weighting_at_whole_and_real_times(x64):
    """g² is the process's, at its steps as between them: the integral of λ̇ is the fall of λ."""
    schedule = eqd.cosine_schedule(9)
    denoiser = eqd.GaussianDenoiser(schedule, 0.2, 0.7)
    for t in (1, 5):
        whole, real = (
            eqd.score_matching(predicted(denoiser, u), eqd.LikelihoodWeighting())
            for u in (t, float(t))
        )
        np.testing.assert_allclose(whole, real, rtol=1e-9)
        slope = -jax.grad(schedule.log_snr)(float(t))
        plain = eqd.score_matching(predicted(denoiser, t))
        np.testing.assert_allclose(whole, slope * plain, rtol=1e-9)
