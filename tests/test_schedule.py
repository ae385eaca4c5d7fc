"""A schedule's tables, spacing and respacing: against the official tables and definitions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers import load_golden
from toys import without_rescaling

import eqdiff as eqd
from eqdiff._process import time_at


TABLES = "public_idiff_schedules"
NAMED = {
    "linear_1000": lambda: eqd.linear_schedule(1000),
    "linear_100": lambda: eqd.linear_schedule(100),
    "cosine_4000": lambda: eqd.cosine_schedule(4000),
    "cosine_100": lambda: eqd.cosine_schedule(100),
}
SPACED = {
    "cosine_4000_100": lambda: eqd.respace(
        eqd.cosine_schedule(4000), eqd.section_timesteps(4000, (100,))
    ),
    "linear_1000_ddim50": lambda: eqd.respace(
        eqd.linear_schedule(1000), eqd.ddim_timesteps(1000, 50)
    ),
    "linear_300_10,15,20": lambda: eqd.respace(
        eqd.linear_schedule(300), eqd.section_timesteps(300, (10, 15, 20))
    ),
    "cosine_100_[100]": lambda: eqd.respace(
        eqd.cosine_schedule(100), eqd.section_timesteps(100, (100,))
    ),
}


@pytest.fixture
def untyped(monkeypatch):
    """Users run without jaxtyping's checks, and meet our own messages."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def official_tables(schedule):
    """Everything improved-diffusion stores, under its own names."""
    alpha_bar = schedule.alpha_bar
    coef1, coef2 = jax.vmap(schedule.posterior_mean_coefficients)(jnp.arange(schedule.num_steps))
    every = jnp.arange(schedule.num_steps)
    alpha, sigma = jax.vmap(schedule.alpha)(every), jax.vmap(schedule.sigma)(every)
    log_snr = jax.vmap(schedule.log_snr)(every)
    return {
        "betas": schedule.betas,
        "alphas_cumprod": alpha_bar,
        "alphas_cumprod_prev": schedule.alpha_bar_previous,
        "alphas_cumprod_next": np.append(alpha_bar[1:], 0.0),
        "sqrt_alphas_cumprod": alpha,
        "sqrt_one_minus_alphas_cumprod": sigma,
        "log_one_minus_alphas_cumprod": 2 * jnp.log(alpha) - log_snr,
        "sqrt_recip_alphas_cumprod": 1 / alpha,
        "sqrt_recipm1_alphas_cumprod": jnp.exp(-0.5 * log_snr),
        "posterior_variance": schedule.posterior_variance,
        "posterior_log_variance_clipped": schedule.posterior_log_variance,
        "posterior_mean_coef1": coef1,
        "posterior_mean_coef2": coef2,
    }


@pytest.mark.parametrize(
    "case", [*(f"schedule/{name}" for name in NAMED), *(f"spaced/{name}" for name in SPACED)]
)
def test_golden_tables(case, x64):
    kind, name = case.split("/")
    schedule = (NAMED if kind == "schedule" else SPACED)[name]()
    tables = official_tables(schedule)
    keys = [key for key in load_golden(TABLES) if key.startswith(f"{case}/")]
    assert len(keys) >= 6
    for key in keys:
        table = key.removeprefix(f"{case}/")
        truth = load_golden(TABLES)[key]
        if table == "timestep_map":
            np.testing.assert_array_equal(schedule.timesteps, truth)
            continue
        # Each entry on its own, not relative to the largest. log(1 − ᾱ) is a difference of two of
        # our quantities; near t = 0 the official 1 − ᾱ itself cancels to some 1e-12.
        atol = 1e-14 if table.startswith("log_one") else 1e-15
        np.testing.assert_allclose(tables[table], truth, rtol=1e-11, atol=atol, err_msg=key)
        if table in ("betas", "alphas_cumprod", "posterior_variance"):
            np.testing.assert_allclose(tables[table], truth, rtol=1e-12, atol=0, err_msg=key)


@pytest.mark.parametrize("name", SPACED)
def test_golden_time_inputs(name):
    schedule, g = SPACED[name](), load_golden(TABLES)
    seen = []

    def net(c_noise, x, args, *, key):
        seen.append(c_noise)
        return x

    for rescale, process in ((1, schedule), (0, without_rescaling(schedule))):
        seen.clear()
        # What the wrapped network receives, not only what the table says.
        denoiser = eqd.Denoiser(net, process)
        for t in (0, 1, schedule.num_steps // 2, schedule.num_steps - 1):
            denoiser(t, jnp.zeros(1))
            truth = g[f"spaced_model_t/{name}_rescale{rescale}/model_t"][t]
            np.testing.assert_allclose(seen[-1], truth, rtol=1e-6)
        truth = g[f"spaced_model_t/{name}_rescale{rescale}/model_t"]
        np.testing.assert_allclose(process.c_noises, truth, rtol=2e-7)


def test_time_inputs_without_rescaling_survive_respacing():
    original = without_rescaling(eqd.cosine_schedule(4000))
    thin = eqd.respace(original, eqd.section_timesteps(4000, (100,)))
    truth = load_golden(TABLES)["spaced_model_t/cosine_4000_100_rescale0/model_t"]
    np.testing.assert_array_equal(thin.c_noises, truth)


@pytest.mark.parametrize(
    "num_steps,spec",
    [
        (300, "10,15,20"),
        (100, "[100]"),
        (1000, "250"),
        (4000, "100"),
        (1001, "3,7,5"),
        (50, "[5,5]"),
    ],
)
def test_golden_section_timesteps(num_steps, spec):
    counts = tuple(int(c) for c in spec.strip("[]").split(","))
    steps = eqd.section_timesteps(num_steps, counts)
    truth = load_golden(TABLES)[f"space_timesteps/{num_steps}_{spec}/steps"]
    np.testing.assert_array_equal(steps, truth)


@pytest.mark.parametrize("count", [50, 100])
def test_golden_ddim_timesteps(count):
    truth = load_golden(TABLES)[f"space_timesteps/1000_ddim{count}/steps"]
    np.testing.assert_array_equal(eqd.ddim_timesteps(1000, count), truth)


def test_timesteps_that_the_official_code_refuses():
    """Ours are among those at the end of this file."""
    g = load_golden(TABLES)
    for case in ("1000_ddim51", "100_[101]", "10_6,3"):
        assert f"space_timesteps_error/{case}/raises" in g


def test_which_ddim_counts_exist():
    """62 counts work at T = 1000: all that a whole stride gives, except a stride past the end."""

    def works(count):
        try:
            steps = eqd.ddim_timesteps(1000, count)
        except ValueError:
            return False
        stride = steps[1] - steps[0]
        np.testing.assert_array_equal(steps, np.arange(0, 1000, stride))
        return len(steps) == count

    counts = [count for count in range(1, 1001) if works(count)]
    assert len(counts) == 62
    assert not {150, 300, 400, 600} & set(counts)


def test_nearest_counts_of_the_error_work():
    with pytest.raises(ValueError) as error:
        eqd.ddim_timesteps(1000, 300)
    nearest = str(error.value).split("that work are ")[1].split(". ")[0].split(", ")
    for count in map(int, nearest):
        assert len(eqd.ddim_timesteps(1000, count)) == count


def test_one_step_sections_keep_their_noisiest_step():
    np.testing.assert_array_equal(eqd.section_timesteps(1000, (1,)), [999])
    np.testing.assert_array_equal(eqd.section_timesteps(10, (1, 2)), [4, 5, 9])


@pytest.mark.parametrize("make", [eqd.linear_schedule, eqd.cosine_schedule])
def test_tables_are_their_definitions(make, x64):
    """Independent of the official numbers, in exact rational arithmetic for ᾱ."""
    from fractions import Fraction

    schedule = make(40)
    product, alpha_bar = Fraction(1), []
    for beta in schedule.betas:
        product *= 1 - Fraction(beta)
        alpha_bar.append(product)
    before = [Fraction(1), *alpha_bar[:-1]]
    beta = [Fraction(b) for b in schedule.betas]
    variance = [(1 - p) / (1 - a) * b for p, a, b in zip(before, alpha_bar, beta, strict=True)]
    np.testing.assert_allclose(schedule.alpha_bar, [float(a) for a in alpha_bar], rtol=1e-13)
    np.testing.assert_allclose(
        schedule.posterior_variance, [float(v) for v in variance], rtol=1e-11, atol=0
    )
    # The posterior is a proper Gaussian conditional: of x_{t−1} = √ᾱ' x0 + √(1−ᾱ') z and
    # x_t = √(1−β) x_{t−1} + √β w.
    for t in range(1, 40):
        prior, likelihood = 1 / float(1 - before[t]), float((1 - beta[t]) / beta[t])
        np.testing.assert_allclose(
            schedule.posterior_variance[t], 1 / (prior + likelihood), rtol=1e-9
        )
        c1, c2 = schedule.posterior_mean_coefficients(t)
        v = 1 / (prior + likelihood)
        np.testing.assert_allclose(c1, v * prior * float(before[t]) ** 0.5, rtol=1e-9)
        np.testing.assert_allclose(c2, v * float(1 - beta[t]) ** 0.5 / float(beta[t]), rtol=1e-9)


def test_respacing_to_all_steps_is_the_identity(x64):
    for schedule in (eqd.linear_schedule(60), eqd.cosine_schedule(60)):
        same = eqd.respace(schedule, np.arange(60))
        np.testing.assert_allclose(same.betas, schedule.betas, rtol=1e-10)
        np.testing.assert_array_equal(same.c_noises, schedule.c_noises)


def test_respacing_keeps_the_marginals_and_composes(x64):
    schedule = eqd.cosine_schedule(200)
    first = eqd.respace(schedule, np.arange(0, 200, 2))
    twice = eqd.respace(first, np.arange(1, 100, 5))
    once = eqd.respace(schedule, np.arange(2, 200, 10))
    np.testing.assert_array_equal(twice.timesteps, once.timesteps)
    np.testing.assert_array_equal(twice.c_noises, once.c_noises)
    np.testing.assert_allclose(twice.alpha_bar, schedule.alpha_bar[once.timesteps], rtol=1e-11)
    np.testing.assert_allclose(twice.betas, once.betas, rtol=1e-10)


def test_a_schedule_of_one_step(x64):
    """x_T drawn from one jump: the posterior at t = 0 is x0, and β is the only variance."""
    chain = eqd.respace(eqd.linear_schedule(1000), eqd.section_timesteps(1000, (1,)))
    assert chain.num_steps == 1 and chain.timesteps[0] == 999 and chain.c_noises[0] == 999
    np.testing.assert_allclose(
        chain.betas, 1 - eqd.linear_schedule(1000).alpha_bar[-1:], rtol=1e-12
    )
    for variance in (eqd.FixedSmall(), eqd.FixedLarge(), eqd.LearnedRange()):
        log_variance = variance.log_variance(chain, 0, jnp.zeros(2))
        np.testing.assert_allclose(log_variance, np.log(chain.betas[0]) * np.ones(()), rtol=1e-12)
    np.testing.assert_allclose(chain.posterior_mean_coefficients(0), [1, 0], atol=1e-12)
    assert list(eqd.uniform_times(chain, 1)) == [0]
    # It has one time, and one level: 0.
    assert chain.t0 == chain.t1 == 0
    np.testing.assert_allclose(chain.sigma(0.0), np.sqrt(chain.betas[0]), rtol=1e-12)


def test_whole_times_are_the_tables(x64):
    """Whatever kind of whole number they come as."""
    schedule = eqd.linear_schedule(30)
    kinds = (int, np.int64, np.uint8, jnp.asarray, lambda t: jnp.asarray(t, jnp.int8))
    for t in (kind(7) for kind in kinds):
        assert float(schedule.alpha(t)) == np.sqrt(schedule.alpha_bar[7])
        assert float(schedule.sigma(t)) == np.sqrt(1 - schedule.alpha_bar[7])
        assert float(schedule.c_noise(t)) == schedule.c_noises[7]
    u = jnp.asarray([0.0, 0.0333, 0.0334, 0.5, 1 - 1e-12, 1.0])
    np.testing.assert_array_equal(time_at(schedule, u), [0, 0, 1, 15, 29, 29])


def test_a_schedule_is_static_and_equal_ones_share_a_compilation():
    traces = []

    @eqx.filter_jit
    def run(schedule, x):
        traces.append(None)
        thin = eqd.respace(schedule, eqd.section_timesteps(schedule.num_steps, (5,)))
        return thin.alpha(2) * x + thin.sigma(jnp.asarray(1.5))

    assert jax.tree.leaves(eqd.cosine_schedule(40)) == []
    first = run(eqd.cosine_schedule(40), jnp.ones(2))
    second = run(eqd.cosine_schedule(40), jnp.ones(2))
    assert len(traces) == 1
    np.testing.assert_array_equal(first, second)
    assert eqd.cosine_schedule(40) == eqd.cosine_schedule(40)
    assert hash(eqd.cosine_schedule(40)) == hash(eqd.cosine_schedule(40))
    other = run(eqd.linear_schedule(40), jnp.ones(2))
    assert len(traces) == 2 and not np.allclose(other, first)
    # Time inputs and rates both count.
    run(without_rescaling(eqd.cosine_schedule(40)), jnp.ones(2))
    assert len(traces) == 3


def test_tables_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        eqd.linear_schedule(30).betas[0] = 1.0


def test_tables_do_not_lose_float64_to_the_caller():
    """The first steps need log(1 − ᾱ) in float64: cast once, after."""
    schedule = eqd.cosine_schedule(4000)
    assert schedule.betas.dtype == schedule.c_noises.dtype == np.float64
    alpha_bar = schedule.alpha_bar
    truth = np.log(alpha_bar) - np.log1p(-alpha_bar)
    assert schedule.log_snrs.dtype == np.float64
    np.testing.assert_allclose(schedule.log_snrs, truth, rtol=1e-15)
    alpha, sigma = (jax.vmap(f)(jnp.arange(4000)) for f in (schedule.alpha, schedule.sigma))
    np.testing.assert_allclose(alpha, np.sqrt(alpha_bar), rtol=1e-7)
    np.testing.assert_allclose(sigma, np.sqrt(-np.expm1(np.log(alpha_bar))), rtol=1e-7)


def test_alpha_bar_schedule_makes_the_cosine_and_any_other(x64):
    made = eqd.alpha_bar_schedule(lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2, 50)
    np.testing.assert_allclose(made.betas, eqd.cosine_schedule(50).betas, rtol=1e-12)
    # ᾱ = e^{−5u} has constant rates 1 − e^{−5/T}.
    flat = eqd.alpha_bar_schedule(lambda u: 3.0 * np.exp(-5 * u), 50)
    np.testing.assert_allclose(flat.betas, 1 - np.exp(-0.1), rtol=1e-12)
    clipped = eqd.alpha_bar_schedule(lambda u: 1 - u, 10, max_beta=0.7)
    assert clipped.betas[-1] == 0.7


REFUSED = [
    (lambda: eqd.linear_schedule(19), r"betas\[18\] = 1.05263 "),
    (lambda: eqd.Schedule(np.array([1.0, 0.5])), r"betas\[0\] = 1 "),
    (lambda: eqd.linear_schedule(10), "at least 20 steps"),
    (lambda: eqd.linear_schedule(0), "positive whole number"),
    (lambda: eqd.alpha_bar_schedule(lambda u: 1 + u, 5), "must be positive and decreasing"),
    (lambda: eqd.alpha_bar_schedule(lambda u: 0.5 - u, 5), r"alpha_bar\(3/5\)"),
    (lambda: eqd.Schedule(np.array([0.1, np.nan])), r"betas\[1\]"),
    (lambda: eqd.Schedule(np.array([])), r"shape \(0,\)"),
    (lambda: eqd.Schedule(np.array([0.1]), c_noise=np.zeros(2)), "c_noise has shape"),
    (lambda: eqd.Schedule(np.array([0.1]), timesteps=np.arange(2)), "timesteps has shape"),
    *(
        (
            lambda steps=steps: eqd.respace(eqd.linear_schedule(50), np.array(steps)),
            "increasing whole numbers from 0 to 49",
        )
        for steps in ([], [3, 2], [2, 2], [-1, 3], [0, 50], [0.0, 1.0], [[0, 1]])
    ),
    (lambda: eqd.ddim_timesteps(1000, 51), "exactly 51 steps.*section_timesteps"),
    (lambda: eqd.ddim_timesteps(1000, 1), "exactly 1 steps"),
    (lambda: eqd.section_timesteps(100, (101,)), "between 1 and 100, but it is 101"),
    (lambda: eqd.section_timesteps(10, (6, 3)), "section 0 has 5 steps"),
    (lambda: eqd.section_timesteps(10, (3, 0)), "counts=0.*positive whole number"),
    (lambda: eqd.section_timesteps(10, ()), "one count per section"),
]


@pytest.mark.parametrize(("make", "match"), REFUSED)
def test_refused(make, match, untyped):
    with pytest.raises(ValueError, match=match):
        make()
