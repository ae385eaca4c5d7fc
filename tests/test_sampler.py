"""Samplers against the exact flow of Gaussian data, and against each other."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqdiff as eqd


MEAN, STD = np.array([0.5, -1.0]), np.array([0.3, 1.2])
COVARIANCE = np.array([[0.5, 0.3], [0.3, 0.4]])
X1 = np.array([0.7, -1.3])
# Away from the singular ends, so that the order of a method shows.
SMOOTH = eqd.VPSDE(0.1, 5.0, t0=0.05)


def gaussian(process) -> eqd.GaussianDenoiser:
    return eqd.GaussianDenoiser(process, MEAN, STD)


def exact_flow(process, start, end, x):
    """The flow of Gaussian data: x(s) = α_s m + √(C_s/C_t) (x − α_t m), C = α² S + σ²."""

    def moments(t):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        return alpha * MEAN, np.sqrt(alpha**2 * STD**2 + sigma**2)

    (m_start, c_start), (m_end, c_end) = moments(start), moments(end)
    return m_end + c_end / c_start * (x - m_start)


def slope(errors: dict[int, float]) -> float:
    steps = np.array(list(errors))
    return -np.polyfit(np.log(steps), np.log(list(errors.values())), 1)[0]


@pytest.mark.parametrize(
    ("solver", "steps", "order"),
    [
        (diffrax.Euler(), (64, 256), 1),
        (diffrax.Heun(), (32, 128), 2),
        (diffrax.Tsit5(), (20, 60), 5),
    ],
    ids=["euler", "heun", "tsit5"],
)
def test_probability_flow_converges_at_the_solvers_order(solver, steps, order, x64):
    denoiser = gaussian(SMOOTH)
    exact = exact_flow(SMOOTH, SMOOTH.t1, SMOOTH.t0, X1)
    errors = {}
    for n in steps:
        solution = eqd.ProbabilityFlow(solver, num_steps=n).solve(denoiser, jnp.asarray(X1))
        assert int(solution.stats["num_accepted_steps"]) == n
        errors[n] = float(np.abs(solution.ys[-1] - exact).max())
    assert abs(slope(errors) - order) < 0.15 * order
    assert errors[steps[-1]] < 0.02


def test_ddim_converges_at_first_order(x64):
    denoiser = gaussian(SMOOTH)
    exact = exact_flow(SMOOTH, SMOOTH.t1, SMOOTH.t0, X1)
    errors = {}
    for n in (32, 256):
        # The state after the last step but one is at t0; the last goes on to the data.
        x = eqd.DDIM(n).trajectory(denoiser, jnp.asarray(X1)).x[-2]
        errors[n] = float(np.abs(x - exact).max())
    assert abs(slope(errors) - 1) < 0.1


@pytest.mark.parametrize("process", [eqd.VESDE(), eqd.cosine_schedule(1000)], ids=["ve", "cosine"])
def test_adaptive_probability_flow_is_exact(process, x64):
    x1 = X1 * float(process.prior_scale())
    sample = eqd.ProbabilityFlow(rtol=1e-8, atol=1e-8)(gaussian(process), jnp.asarray(x1))
    x = exact_flow(process, process.t1, process.t0, x1)
    expected = gaussian(process)(process.t0, jnp.asarray(x)).x0
    # A schedule's interpolation has a kink in its second derivative at every whole time.
    np.testing.assert_allclose(sample, expected, atol=2e-6 if process.t1 == 1 else 2e-5)


def test_ddim_is_euler_in_the_clock_of_its_noise(x64):
    """η = 0: d(x/α) = ε̂ d(σ/α), by Diffrax's own Euler on the same grid, down to σ/α = 0."""
    process = eqd.cosine_schedule(100)
    denoiser, sampler = gaussian(process), eqd.DDIM(20)
    times = eqd.uniform_times(process, 20)
    alpha, sigma = jax.vmap(process.alpha)(times), jax.vmap(process.sigma)(times)
    clock = sigma / alpha

    def vector_field(s, y, args):
        t = times[jnp.argmin(jnp.abs(clock - s))]
        return denoiser(t, process.alpha(t) * y).noise

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(vector_field),
        diffrax.Euler(),
        t0=clock[0],
        t1=0.0,
        dt0=None,
        y0=X1 / alpha[0],
        stepsize_controller=diffrax.StepTo(jnp.append(clock, 0.0)),
    )
    np.testing.assert_allclose(sampler(denoiser, jnp.asarray(X1)), solution.ys[-1], rtol=1e-12)


@pytest.mark.parametrize("num_steps", [12, 100])
def test_ddim_with_all_its_noise_is_ancestral(num_steps, getkey, x64):
    """η = 1 has the variance β̃ of the respaced schedule: the same noise gives the same path."""
    schedule, key = eqd.cosine_schedule(100), getkey()
    denoiser = eqd.GaussianDenoiser(schedule, MEAN, STD, variance=eqd.FixedSmall())
    ddim = eqd.DDIM(num_steps, eta=1.0).trajectory(denoiser, jnp.asarray(X1), key=key)
    ancestral = eqd.Ancestral(num_steps).trajectory(denoiser, jnp.asarray(X1), key=key)
    np.testing.assert_array_equal(ddim.t, ancestral.t)
    np.testing.assert_allclose(ddim.x, ancestral.x, rtol=1e-8, atol=1e-11)


def test_ancestral_moments_by_recursion(x64):
    """With Gaussian data each step is linear, so the chain's mean and variance have a recursion."""
    schedule = eqd.linear_schedule(30)
    denoiser = eqd.GaussianDenoiser(schedule, MEAN, STD, variance=eqd.FixedLarge())
    abar, beta = np.cumprod(1 - schedule.betas), schedule.betas
    mean, variance = np.zeros(2), np.ones(2)
    for t in range(29, -1, -1):
        previous = abar[t - 1] if t else 1.0
        gain = np.sqrt(abar[t]) * STD**2 / (abar[t] * STD**2 + 1 - abar[t])
        on_x0 = np.sqrt(previous) * beta[t] / (1 - abar[t])
        on_x = np.sqrt(1 - beta[t]) * (1 - previous) / (1 - abar[t])
        a = on_x0 * gain + on_x
        mean = on_x0 * (MEAN - gain * np.sqrt(abar[t]) * MEAN) + a * mean
        variance = a**2 * variance + (beta[t] if t else 0.0)
    n = 8000
    draw = eqx.filter_jit(eqx.filter_vmap(lambda x, k: eqd.Ancestral()(denoiser, x, key=k)))
    prior, path = jax.random.split(jax.random.key(0))
    x = np.asarray(draw(jax.random.normal(prior, (n, 2)), jax.random.split(path, n)))
    np.testing.assert_array_less(np.abs(x.mean(0) - mean), 4 * np.sqrt(variance / n))
    np.testing.assert_allclose(x.var(0), variance, rtol=4 * (2 / n) ** 0.5)


def _correlated():
    return eqd.GaussianMixtureDenoiser(eqd.VPSDE(), np.ones(1), MEAN[None], COVARIANCE[None])


def _draw_sde(sampler, n):
    denoiser = _correlated()

    @jax.jit
    @jax.vmap
    def draw(x1, key):
        solution = sampler.solve(denoiser, x1, key=key)
        return denoiser(denoiser.process.t0, solution.ys[-1]).x0, solution.stats["num_steps"]

    prior, path = jax.random.split(jax.random.key(1))
    x1, keys = jax.random.normal(prior, (n, 2)), jax.random.split(path, n)
    return x1, keys, *map(np.asarray, draw(x1, keys))


def _assert_moments(x):
    n = len(x)
    mean = x.mean(0)
    assert np.all(np.abs(mean - MEAN) < 4 * np.sqrt(np.diag(COVARIANCE) / n))
    products = (x - mean)[:, :, None] * (x - mean)[:, None]
    assert np.all(np.abs(products.mean(0) - COVARIANCE) < 4 * products.std(0) / n**0.5)


@pytest.fixture(scope="session")
def shark():
    return _draw_sde(eqd.ReverseSDE(), 1000)


@pytest.mark.slow
def test_adaptive_shark_has_the_datas_moments_in_few_steps(shark):
    _, _, x, num_steps = shark
    _assert_moments(x)
    assert num_steps.mean() < 150


@pytest.mark.slow
def test_an_adaptive_sample_does_not_depend_on_its_batch(shark):
    x1, keys, x, _ = shark
    alone = jax.jit(lambda a, k: eqd.ReverseSDE()(_correlated(), a, key=k))(x1[7], keys[7])
    np.testing.assert_allclose(alone, x[7], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_euler_maruyama_has_the_datas_moments_in_many_steps():
    *_, x, num_steps = _draw_sde(eqd.ReverseSDE(diffrax.Euler(), num_steps=500), 500)
    _assert_moments(x)
    assert np.all(num_steps == 500)


def test_a_schedules_path_is_whole(getkey):
    """Times as in the official code, and noise that the key makes."""
    denoiser, x1 = gaussian(eqd.cosine_schedule(50)), jnp.asarray(X1, float)
    for sampler in (eqd.Ancestral(6), eqd.DDIM(6, eta=0.7)):
        one, other = (sampler.trajectory(denoiser, x1, key=getkey()) for _ in range(2))
        np.testing.assert_array_equal(one.t, [49, 39, 29, 20, 10, 0])
        assert not np.allclose(one.x[-1], other.x[-1])


def test_batches_are_vmap(getkey):
    denoiser, keys = gaussian(eqd.cosine_schedule(50)), jax.random.split(getkey(), 3)
    x1 = jax.random.normal(getkey(), (3, 2))
    for sampler in (eqd.Ancestral(6), eqd.DDIM(6, eta=0.7)):
        batch = jax.jit(jax.vmap(lambda x, k, s=sampler: s(denoiser, x, key=k)))(x1, keys)
        alone = jax.jit(lambda x, k, s=sampler: s(denoiser, x, key=k))(x1[2], keys[2])
        np.testing.assert_allclose(batch[2], alone, rtol=1e-5, atol=1e-6)


SCHEDULE = gaussian(eqd.cosine_schedule(50))
REFUSED = [
    (lambda: eqd.DDIM(eta=1.5), "between 0 and 1"),
    (lambda: eqd.DDIM(eta=-0.1), "between 0 and 1"),
    (lambda: eqd.ProbabilityFlow(rtol=0.0), "expected a positive finite number"),
    (lambda: eqd.ReverseSDE(atol=-1.0), "expected a positive finite number"),
    (lambda: eqd.ProbabilityFlow(max_steps=0), "expected a positive whole number"),
    (lambda: eqd.ProbabilityFlow(spacing=eqd.karras_times), "write num_steps=50"),
    (lambda: eqd.ReverseSDE(times=np.array([0.5])), "a step needs two"),
    (
        lambda: eqd.Ancestral()(gaussian(eqd.VPSDE()), jnp.ones(2), key=jax.random.key(0)),
        r"eqdiff\.cosine_schedule\(1000\), or eqdiff\.discretise",
    ),
    (
        lambda: eqd.Ancestral(51)(SCHEDULE, jnp.ones(2), key=jax.random.key(0)),
        "has only 50 steps",
    ),
    (lambda: eqd.DDIM(51)(SCHEDULE, jnp.ones(2)), "has only 50 steps"),
    (
        lambda: eqd.Ancestral(times=np.array([3.0, 0.5]))(
            SCHEDULE, jnp.ones(2), key=jax.random.key(0)
        ),
        r"its times are float.*times=ddim_timesteps\(50, 50\)\[::-1\]",
    ),
]


@pytest.mark.parametrize(("make", "match"), REFUSED)
def test_refusals(make, match):
    with pytest.raises(ValueError, match=match):
        make()
