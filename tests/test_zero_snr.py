"""Schedules that end in pure noise: α = 0 exactly at the last step."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


T = 100
MEAN, STD = 0.7, 0.4


def ending(num_steps=T):
    return eqd.zero_terminal_snr(eqd.linear_schedule(num_steps))


def oracle(schedule=None, mean=MEAN, std=STD, **options):
    return eqd.GaussianDenoiser(ending() if schedule is None else schedule, mean, std, **options)


def test_the_published_rescaling(x64):
    """√ᾱ shifted to end at 0 and scaled to begin where it did (Lin et al. 2024, algorithm 1)."""
    plain = eqd.linear_schedule(1000)
    root = np.sqrt(np.cumprod(1 - plain.betas))
    first, last = root[0], root[-1]
    expected = ((root - last) * first / (first - last)) ** 2
    schedule = eqd.zero_terminal_snr(plain)
    np.testing.assert_allclose(schedule.alpha_bar, expected, rtol=1e-12)
    assert schedule.alpha_bar[-1] == 0 and schedule.betas[-1] == 1
    assert schedule.log_snrs[-1] == -np.inf and schedule.t1 == 998
    np.testing.assert_array_equal(schedule.c_noises, plain.c_noises)
    # Once is enough, and a schedule without that step is an ordinary one.
    again = eqd.zero_terminal_snr(schedule)
    np.testing.assert_allclose(again.betas, schedule.betas, rtol=1e-9)
    assert eqd.respace(schedule, [0, 500, 999]).ends_without_signal
    short = eqd.respace(schedule, range(999))
    assert not short.ends_without_signal and np.all(np.isfinite(short.log_snrs))
    with pytest.raises(ValueError, match="one step"):
        eqd.zero_terminal_snr(eqd.Schedule(np.full(1, 0.5)))
    # A cosine that reaches 0, and rates that do.
    assert eqd.discretise(eqd.CosineVPSDE(t1=1.0), 20).ends_without_signal
    straight = eqd.alpha_bar_schedule(lambda u: (1 - u) ** 2, 10, max_beta=1.0)
    assert straight.ends_without_signal
    np.testing.assert_allclose(np.sqrt(straight.alpha_bar), 1 - np.arange(1, 11) / 10, atol=1e-12)


@pytest.mark.parametrize("num_steps", [2, 3, 5, T])
def test_the_curve_to_no_signal(num_steps, x64):
    """Through the tables, α falls to 0 with a finite slope, and all is each other's inverse."""
    root = np.linspace(0.99, 0, num_steps)
    schedule = eqd.Schedule(1 - root**2 / np.append(1, root[:-1] ** 2))
    last = num_steps - 1
    at = quick_jit(jax.vmap(lambda t: (schedule.alpha(t), schedule.sigma(t), schedule.log_snr(t))))
    steps = jnp.arange(num_steps)
    for whole, between in zip(at(steps), at(steps.astype(float)), strict=True):
        np.testing.assert_allclose(between, whole, rtol=1e-12, atol=1e-15)
    t = jnp.linspace(0.01, last - 1e-3, 57)
    slopes = quick_jit(jax.vmap(lambda t: (schedule.alpha_dot(t), schedule.sigma_dot(t))))
    for rate, level in zip(slopes(t), (schedule.alpha, schedule.sigma), strict=True):
        np.testing.assert_allclose(rate, jax.vmap(jax.grad(level))(t), rtol=1e-9)
    end = [slopes(jnp.asarray([value])) for value in (last - 1e-6, float(last))]
    np.testing.assert_allclose(end[1], end[0], rtol=1e-4, atol=1e-4)
    assert end[1][0] < 0 and end[1][1] == 0
    np.testing.assert_allclose(jax.vmap(schedule.time)(jax.vmap(schedule.log_snr)(t)), t, atol=1e-9)
    assert float(schedule.time(jnp.asarray(-jnp.inf))) == pytest.approx(last)
    falls = jax.vmap(lambda t: schedule.log_snr_fall(t - 0.01, t))(t)
    exact = jax.vmap(lambda t: schedule.log_snr(t - 0.01) - schedule.log_snr(t))(t)
    np.testing.assert_allclose(falls, exact, rtol=1e-9)
    assert schedule.log_snr_fall(0, last) == np.inf and schedule.log_snr_fall(last, last) == 0
    assert schedule.log_snr_fall(float(last), float(last)) == 0
    np.testing.assert_array_equal(schedule.transition(0, last), [0, 1])


def test_the_curve_has_no_corner(x64):
    schedule = ending(1000)
    slope = jax.vmap(lambda t: schedule.alpha_dot(t))(998 + jnp.asarray([-1e-9, 1e-9]))
    np.testing.assert_allclose(slope[1], slope[0], rtol=1e-6)


PREDICTIONS = {
    "v": eqd.PredictVelocity(),
    "x0": eqd.PredictData(),
    "flow": eqd.PredictFlow(),
    "edm": eqd.EDMPreconditioning(0.5),
    "mean": eqd.PreviousMean(),
}


@pytest.mark.parametrize("name", PREDICTIONS)
def test_estimates_at_the_end(name):
    """x = ε there, and what the network is trained on gives x0 back, in either precision."""
    parameterisation, schedule = PREDICTIONS[name], ending()
    x0, noise = jnp.asarray([0.3, -1.2]), jnp.asarray([0.5, 0.1])
    target = parameterisation.target(schedule, T - 1, x0, noise)
    denoiser = eqd.Denoiser(lambda *_, key=None: target, schedule, parameterisation)
    for t in (T - 1,) if name == "mean" else (T - 1, float(T - 1)):
        p = eqd.predict(denoiser, t, x0, noise=noise)
        np.testing.assert_allclose(p.x, noise, rtol=1e-6)
        np.testing.assert_allclose(p.estimate.x0, x0, rtol=1e-4)
        np.testing.assert_allclose(p.estimate.noise, noise, rtol=1e-6)
    if name == "v":
        np.testing.assert_allclose(target, -x0, rtol=1e-6)


@pytest.mark.parametrize("parameterisation", [eqd.PredictNoise(), eqd.PredictScore()])
def test_noise_alone_is_refused(parameterisation):
    calls = []

    def net(c_noise, x, args, *, key):
        calls.append(c_noise)
        return x

    plain = eqd.Denoiser(net, eqd.linear_schedule(T), parameterisation)
    message = (
        rf"t = {T - 1} of Schedule no signal.*PredictVelocity\(\).*respace\(.*range\({T - 1}\)"
    )
    with pytest.raises(ValueError, match=message):
        eqd.Denoiser(plain.net, ending(), parameterisation)
    with pytest.raises(ValueError, match=message):
        eqd.on(plain, ending())(3, jnp.ones(2))
    assert not calls
    below = eqd.respace(ending(), range(T - 1))
    eqd.Denoiser(plain.net, below, parameterisation)


DETERMINISTIC = {
    "DDIM, trailing": (eqd.DDIM(1000, spacing=eqd.trailing_times), 4e-3),
    "DPMSolverPP": (eqd.DPMSolverPP(90), 2e-3),
    "DPMSolverPP, whole times": (eqd.DPMSolverPP(1000, spacing=eqd.uniform_times), 1e-3),
    "UniPC, whole times": (eqd.UniPC(500, order=3, spacing=eqd.trailing_times), 1e-3),
    "StochasticHeun": (eqd.StochasticHeun(150), 3e-3),
    "ProbabilityFlow": (eqd.ProbabilityFlow(rtol=1e-5, atol=1e-5), 1e-3),
}


@pytest.mark.parametrize("make", [eqd.DDIM, eqd.DPMSolverPP, eqd.UniPC, eqd.SDEDPMSolverPP])
def test_straight_lines_from_pure_noise(make, getkey):
    """A process in continuous time may end so too: N(m, s²) from N(0, 1) at t = 1."""
    denoiser = eqd.GaussianDenoiser(eqd.RectifiedFlow(t1=1.0), 0.3, 0.5)
    sampler = make(150, spacing=eqd.uniform_times)
    key, noise_key = jax.random.split(getkey())
    z = jax.random.normal(noise_key, (4000,))
    x = quick_jit(lambda z: sampler(denoiser, z, key=key))(z)
    if make is eqd.SDEDPMSolverPP:
        assert abs(jnp.mean(x) - 0.3) < 5 * 0.5 / np.sqrt(4000) + 0.01
        assert abs(jnp.std(x) / 0.5 - 1) < 5 / np.sqrt(8000) + 0.02
    else:
        np.testing.assert_allclose(x, 0.3 + 0.5 * z, atol=0.03)
    with pytest.raises(ValueError, match=r"_times: at t = 1\.0 of RectifiedFlow.*\(t1=0\.999\)"):
        make(5, spacing=eqd.log_snr_times)(denoiser, z, key=key)
    with pytest.raises(ValueError, match="karras_times: at t = 1.0 of RectifiedFlow"):
        eqd.StochasticHeun(5)(denoiser, z)
    with pytest.raises(ValueError, match="StochasticHeun: at t = 1.0.*x/alpha is infinite"):
        eqd.StochasticHeun(5, spacing=eqd.uniform_times)(denoiser, z)
    assert jnp.isfinite(eqd.karras_times(denoiser.process, 4, sigma_max=80.0)).all()


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers(name):
    """The flow carries N(0, 1) to N(m, s²) in a straight line: z to m + s z."""
    sampler, tolerance = DETERMINISTIC[name]
    z = jnp.linspace(-2, 2, 5)
    x0 = quick_jit(sampler)(oracle(ending(1000)), z)
    # The noise of the cleanest time is removed, not sampled: 3e-4 of the spread.
    np.testing.assert_allclose(x0, MEAN + STD * z, atol=tolerance)


def test_a_multistep_trajectory_from_the_end():
    sampler, z = eqd.DPMSolverPP(8, spacing=eqd.trailing_times), jnp.linspace(-2, 2, 3)
    kept = quick_jit(sampler.trajectory)(oracle(), z)
    assert kept.t[0] == T - 1 and kept.x.shape == (8, 3)
    np.testing.assert_allclose(kept.x[-1], sampler(oracle(), z), rtol=1e-5)
    # DDIM's first step, in which the estimate is the mean of the data.
    np.testing.assert_allclose(kept.x0[0], np.full(3, MEAN), rtol=1e-5)
    first = eqd.DDIM(8, spacing=eqd.trailing_times).trajectory(oracle(), z).x[0]
    np.testing.assert_allclose(kept.x[0], first, rtol=1e-5)


STOCHASTIC = {
    "DDIM, η = 1": eqd.DDIM(T, eta=1.0),
    "SDEDPMSolverPP": eqd.SDEDPMSolverPP(T, spacing=eqd.uniform_times),
    "Ancestral": eqd.Ancestral(T // 2, spacing=eqd.trailing_times),
    "AncestralPredictor": eqd.PredictorCorrector(
        T, predictor=eqd.AncestralPredictor(), corrector=None
    ),
    "corrected": eqd.PredictorCorrector(T, predictor=eqd.AncestralPredictor()),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers(name):
    """White data, for which the variance β of a step is exact at any number of steps: N(m, 1)."""
    n = 40_000
    denoiser = oracle(std=1.0)
    key, start = jax.random.split(jax.random.key(0))
    x0 = quick_jit(STOCHASTIC[name])(denoiser, jax.random.normal(start, (n,)), key=key)
    error = 4 / np.sqrt(n)
    assert abs(float(jnp.mean(x0)) - MEAN) < error
    # The last step is denoised: ᾱ_0 of the variance is left, and of DDIM's error at first order.
    bias = {"DDIM, η = 1": 0.03, "SDEDPMSolverPP": 0.02, "corrected": 0.05}.get(name, 0.003)
    assert abs(float(jnp.std(x0)) - 1) < error + bias


def test_samplers_that_would_divide_by_no_signal():
    denoiser, z, key = oracle(), jnp.ones(2), jax.random.key(0)
    with pytest.raises(ValueError, match=r"StochasticHeun: at t = 99.*x/alpha is infinite"):
        eqd.StochasticHeun(5, spacing=eqd.uniform_times)(denoiser, z)
    for predictor in (eqd.ReverseDiffusion(), eqd.EulerMaruyama()):
        sampler = eqd.PredictorCorrector(5, predictor=predictor, corrector=None)
        with pytest.raises(Exception, match=r"t = 99 of Schedule no signal is left"):
            jax.block_until_ready(sampler(denoiser, z, key=key))
        # From one step below they start as on any schedule.
        below = eqd.on(denoiser, eqd.respace(ending(), range(T - 1)))
        assert np.all(np.isfinite(sampler(below, z, key=key)))


def test_a_latent_goes_to_the_end_and_back():
    sampler, denoiser, x0 = eqd.DDIM(1000), oracle(ending(1000)), jnp.asarray([0.2, 1.0])
    z = sampler.encode(denoiser, x0)
    np.testing.assert_allclose(z, (x0 - MEAN) / STD, atol=0.01)
    np.testing.assert_allclose(sampler(denoiser, z), x0, atol=0.004)


def predicted(parameterisation=eqd.PredictVelocity(), t=T - 1, **options):
    denoiser = oracle(parameterisation=parameterisation, **options)
    return eqd.predict(denoiser, t, jnp.asarray([0.2, 1.0]), noise=jnp.asarray([1.0, -0.5]))


def test_losses_at_the_end():
    p = predicted(variance=eqd.FixedSmall())
    error = np.mean((np.asarray([0.2, 1.0]) - MEAN) ** 2)
    np.testing.assert_allclose(eqd.l_simple(p), error, rtol=1e-5)
    assert eqd.score_matching(p) == 0
    assert eqd.score_matching(p, eqd.MinSNRWeighting()) == 0
    # KL of two Gaussians of one variance, whose means differ by √ᾱ_{T−2} (x0 − x̂0).
    before = ending().alpha_bar[-2]
    bits = before * error / (2 * (1 - before)) / np.log(2)
    term = eqd.bound_term(predicted(variance=eqd.FixedSmall()), levels=11)
    np.testing.assert_allclose(term, bits, rtol=1e-4)
    np.testing.assert_allclose(eqd.l_vlb(p, levels=11), T * bits, rtol=1e-4)
    gradient = jax.grad(lambda m: eqd.l_simple(predicted(mean=m)))(MEAN)
    np.testing.assert_allclose(gradient, 2 * (MEAN - 0.6), rtol=1e-4)


@pytest.mark.parametrize(
    "weighting",
    [
        eqd.LikelihoodWeighting(),
        eqd.EDMWeighting(),
        eqd.SigmoidWeighting(),
        eqd.VelocityWeighting(),
    ],
    ids=lambda w: type(w).__name__,
)
def test_infinite_weights_are_refused(weighting):
    @jax.jit
    def loss(t):
        return eqd.score_matching(predicted(t=t), weighting)

    # Also where the step is not known: a batch will hold it.
    with pytest.raises(Exception, match=r"t = 99 of Schedule no signal is left"):
        loss(3)
    assert np.isfinite(eqd.score_matching(predicted(t=T - 2), weighting))
    assert np.isfinite(loss(T - 2.5))


def test_the_bound_has_no_prior_term():
    denoiser, key = oracle(parameterisation=eqd.PredictVelocity()), jax.random.key(0)
    bound = quick_jit(lambda x: eqd.variational_bound(denoiser, x, key=key, levels=11))
    found = bound(jnp.asarray([0.2, 1.0]))
    assert found.prior == 0 and np.all(np.isfinite(found.terms))
    assert found.noise_error[-1] == 0
    data = jnp.asarray([[0.2, 1.0], [0.4, 0.6]])
    terms = eqd.pairwise_terms(denoiser, data, (0, 40, T - 1), key=key, levels=11)
    assert terms.prior[-1] == 0 and np.isfinite(terms.bound((0, 40, T - 1)))


def test_the_likelihood_from_one_step_below(x64):
    """Solved from T − 2, where α is 5e-4 of the data's mean off the prior."""
    denoiser, x = oracle(), jnp.asarray([0.2, 1.0])
    solve = quick_jit(lambda x: eqd.log_likelihood(denoiser, x, trace=eqd.ExactTrace()).log_prob)
    np.testing.assert_allclose(solve(x), denoiser.log_prob(0, x), atol=5e-3)


def test_variances_and_time_inputs_that_do_not_exist_there():
    denoiser = oracle()
    for make in (eqd.analytic_variance, eqd.optimal_variance):
        with pytest.raises(ValueError, match=r"no signal is left.*FixedSmall\(\)"):
            make(denoiser, jnp.ones((3, 2)), key=jax.random.key(0))
    known = eqx.tree_at(lambda d: d.variance, denoiser, eqd.AnalyticVariance(np.ones(T)))
    with pytest.raises(ValueError, match="AnalyticVariance: at t = 99"):
        eqd.Ancestral()(known, jnp.ones(2), key=jax.random.key(0))
    net = eqd.Denoiser(
        lambda c, x, args, key: x, ending(), eqd.PredictVelocity(), c_noise=eqd.LogNoise()
    )
    with pytest.raises(ValueError, match="LogNoise: at t = 99"):
        net(3, jnp.ones(2))


def test_guidance_at_the_end():
    denoiser, x = oracle(), jnp.asarray([0.5, -2.0])
    with pytest.raises(ValueError, match=r"t = 99 of Schedule no signal.*respace"):
        eqd.ClassifierGuidance(denoiser, lambda t, x, y: -jnp.sum(x**2))
    for guided in (
        eqd.Clip(denoiser, -0.1, 0.1),
        eqd.ClassifierFree(denoiser, 2.0),
        eqd.ZeroStarClassifierFree(denoiser, 2.0),
        eqd.DynamicThreshold(denoiser, 0.9),
    ):
        estimate = guided(T - 1, x, 1)
        assert np.all(np.isfinite(estimate.x0))
        # x = αx̂0 + σε̂ leaves no choice.
        np.testing.assert_allclose(estimate.noise, x, rtol=1e-6)
    np.testing.assert_allclose(eqd.Clip(denoiser, -0.1, 0.1)(T - 1, x).x0, [0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize(("size", "n"), [(1000, 50), (1000, 7), (100, 100), (30, 7), (1000, 1)])
def test_trailing_times(size, n):
    """diffusers' expression; the last step is among them."""
    times = eqd.trailing_times(ending(size), n)
    official = np.round(np.arange(size, 0, -size / n)).astype(np.int64) - 1
    np.testing.assert_array_equal(times, official)
    assert times[0] == size - 1 and times.size == n


def test_trailing_times_elsewhere():
    times = eqd.trailing_times(eqd.RectifiedFlow(t0=0.2, t1=1.0), 4)
    np.testing.assert_allclose(times, [1, 0.8, 0.6, 0.4], rtol=1e-6)
    with pytest.raises(ValueError, match="has only 100 steps"):
        eqd.trailing_times(ending(), T + 1)


def test_saved_and_loaded(tmp_path):
    net = eqd.nn.MLP(2, 2, width=4, depth=1, key=jax.random.key(0))
    denoiser = eqd.Denoiser(net, ending(), eqd.PredictVelocity())
    eqd.save_model(tmp_path / "ends.eqx", denoiser)
    loaded = eqd.load_model(tmp_path / "ends.eqx")
    assert loaded.process == ending()
