"""Every public call with the inputs that people hand over by mistake.

Each is right, or refused with a sentence.

A new public call joins `CALLS` (if it takes an example), `COUNTS` (if it takes a whole number) or
`NEITHER`; `test_every_public_call_is_walked` sees to it.
"""

import inspect

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import eqdiff as eqd


SCHEDULE = eqd.cosine_schedule(8)
LEVELS = 5
GRID = np.array([-1.0, -0.5, 0.0, 0.5, 1.0, 0.5], np.float32).reshape(1, 2, 3)
NOISE = np.random.default_rng(0).standard_normal(GRID.shape)
KEY = jax.random.key(0)
ORACLE = eqd.GaussianDenoiser(SCHEDULE, 0.1, 0.5)
LEARNED = eqd.Denoiser(
    lambda c_noise, x, args, *, key: jnp.concatenate([0.1 * x, 0.2 * x]),
    SCHEDULE,
    variance=eqd.LearnedRange(),
)
FLOW = eqd.ProbabilityFlow(num_steps=2)
DOUBLED = eqd.Measurement(2 * GRID, lambda x: 2 * x, 0.1)
FAILURES = (ValueError, TypeError, eqx.EquinoxRuntimeError, jax.errors.JaxRuntimeError)


@pytest.fixture(autouse=True)
def as_users_run_it(monkeypatch):
    """Without the type checks of the test suite, which would answer before eqdiff does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def logits(c_noise, x, args, *, key):
    return jnp.stack([jnp.sum(x), jnp.sum(x**2), jnp.zeros((), x.dtype)])


def predicted(x, denoiser=ORACLE):
    return eqd.predict(denoiser, 3, x, noise=jnp.asarray(NOISE, x.dtype))


def continuous(x):
    denoiser = eqd.on(ORACLE, eqd.VPSDE())
    return eqd.predict(denoiser, 0.3, x, noise=jnp.asarray(NOISE, x.dtype))


def sampled(sampler):
    return lambda x: sampler(ORACLE, x, key=KEY)


def constrained(constraint):
    return lambda x: eqd.Constrained(eqd.DDIM(2), constraint(x))(
        ORACLE, jnp.zeros(GRID.shape), key=KEY
    )


def scored(dequantise):
    return lambda x: eqd.bits_per_dim(ORACLE, x, flow=FLOW, dequantise=dequantise, key=KEY).bits


# What takes one example, as a function of it alone, with all else right; scores of images are
# apart.
CALLS = {
    "Denoiser": lambda x: LEARNED(3, x).x0,
    "score": lambda x: eqd.score(LEARNED, 3, x),
    "Classifier": lambda x: eqd.Classifier(logits, SCHEDULE)(3, x, 1),
    "classifier_loss": lambda x: eqd.classifier_loss(
        eqd.Classifier(logits, SCHEDULE), 3, x, 1, key=KEY
    ),
    "predict": lambda x: predicted(x).estimate.x0,
    # At its end, where no noise is drawn.
    "bridge_noise": lambda x: eqd.bridge_noise(
        SCHEDULE, SCHEDULE.t1, x, jnp.zeros(GRID.shape, x.dtype), key=KEY
    ),
    "l_simple": lambda x: eqd.l_simple(predicted(x)),
    "score_matching": lambda x: eqd.score_matching(predicted(x)),
    "implicit_score_matching": lambda x: eqd.implicit_score_matching(LEARNED, 3, x),
    "DDIM": sampled(eqd.DDIM(2)),
    "DDIM.encode": lambda x: eqd.DDIM(2).encode(ORACLE, x),
    "Ancestral": sampled(eqd.Ancestral(2)),
    "StochasticHeun": sampled(eqd.StochasticHeun(2)),
    "DPMSolverPP": sampled(eqd.DPMSolverPP(2)),
    "UniPC": sampled(eqd.UniPC(2)),
    "SDEDPMSolverPP": sampled(eqd.SDEDPMSolverPP(2)),
    "DiffPIR": sampled(eqd.DiffPIR(DOUBLED, 2)),
    "DAPS": sampled(eqd.DAPS(DOUBLED, 2, flow_steps=2)),
    "PredictorCorrector": sampled(eqd.PredictorCorrector(2)),
    "ProbabilityFlow": sampled(FLOW),
    "ProbabilityFlow.encode": lambda x: FLOW.encode(ORACLE, x),
    "ProbabilityFlow.decode": lambda x: FLOW.decode(ORACLE, x),
    "ReverseSDE": sampled(eqd.ReverseSDE(diffrax.Euler(), num_steps=2)),
    "log_likelihood": lambda x: eqd.log_likelihood(ORACLE, x, flow=FLOW, key=KEY).log_prob,
    "slerp": lambda x: eqd.slerp(x, -0.5 * x[:, ::-1] + 0.1, 0.3),
    "Inpaint": constrained(lambda x: eqd.Inpaint(x, np.eye(2, 3) > 0)),
    "Colourise": lambda x: eqd.Colourise(x).known(jnp.zeros((3, 2, 3))),
    "Replace": constrained(lambda x: eqd.Replace(x, lambda y: y)),
    "Measurement": lambda x: eqd.Measurement(NOISE, lambda y: y, 0.1).log_prob(x),
    "PosteriorGuidance": lambda x: (
        eqd.PosteriorGuidance(ORACLE, eqd.Measurement(x, lambda y: y, 0.1))(
            3, jnp.zeros(GRID.shape)
        ).x0
    ),
}
SCORES = {
    "bits_per_dim": scored(eqd.GaussianDequantisation(LEVELS)),
    "bits_per_dim, uniform": scored(eqd.UniformDequantisation(LEVELS)),
    "bits_per_dim, truncated": scored(eqd.TruncatedNormalDequantisation(LEVELS)),
    "bound_term": lambda x: eqd.bound_term(predicted(x), levels=LEVELS),
    "l_vlb": lambda x: eqd.l_vlb(predicted(x), levels=LEVELS),
    "l_hybrid": lambda x: eqd.l_hybrid(predicted(x, LEARNED), levels=LEVELS),
    "l_continuous": lambda x: eqd.l_continuous(continuous(x), levels=LEVELS),
    "continuous_terms": lambda x: eqd.continuous_terms(continuous(x), levels=LEVELS).bits,
    "variational_bound": lambda x: eqd.variational_bound(ORACLE, x, levels=LEVELS, key=KEY).bits,
    "continuous_bound": lambda x: (
        eqd.continuous_bound(ORACLE, x, levels=LEVELS, num_terms=4, key=KEY).bits
    ),
    "pairwise_terms": lambda x: (
        eqd.pairwise_terms(ORACLE, x[None], [1, 4, 7], levels=LEVELS, key=KEY).prior
    ),
    "analytic_variance": lambda x: (
        eqd.analytic_variance(ORACLE, jnp.stack([x, -x]), key=KEY).noise_error
    ),
    "optimal_variance": lambda x: eqd.optimal_variance(ORACLE, x[None], key=KEY).noise_error,
}
ANY_GRID = ("analytic_variance", "optimal_variance")
calls = pytest.mark.parametrize("name", [*CALLS, *SCORES])
scores = pytest.mark.parametrize("name", [n for n in SCORES if n not in ANY_GRID])


def call(name, x):
    return np.asarray((CALLS | SCORES)[name](x), np.float64)


def refused(name, x) -> str:
    with pytest.raises(FAILURES) as error:
        call(name, x)
    return str(error.value)


@calls
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, bool])
def test_whole_numbers_are_refused(name, dtype):
    """Pixels of 0 to 255, where normalised data belong."""
    with jax.numpy_dtype_promotion("standard"):
        kind = jax.dtypes.canonicalize_dtype(dtype)
        text = refused(name, jnp.asarray(np.abs(GRID) * 2, kind))
    assert "floating" in text or "whole" in text


@pytest.mark.slow
@calls
def test_numpy_arrays_are_examples_too(name):
    kind = jnp.result_type(float)
    np.testing.assert_allclose(
        call(name, GRID.astype(kind)), call(name, jnp.asarray(GRID, kind)), rtol=1e-6
    )


# Where the state of a solve or a chain would lose the steps near the data, or a score its digits.
FULL_PRECISION = {
    *("DDIM", "DDIM.encode", "Ancestral", "StochasticHeun", "DPMSolverPP", "PredictorCorrector"),
    *("UniPC", "SDEDPMSolverPP", "DiffPIR", "DAPS"),
    *("ProbabilityFlow", "ProbabilityFlow.encode", "ProbabilityFlow.decode", "ReverseSDE"),
    *("log_likelihood", *SCORES),
}


@pytest.mark.slow
@calls
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_half_precision_is_right_or_refused(name, dtype):
    half = jnp.asarray(GRID, dtype)
    if name in FULL_PRECISION:
        assert "float32" in refused(name, half)
        return
    full = call(name, half.astype(jnp.float32))
    if name == "classifier_loss":
        # Draws other noise in another precision.
        assert np.isfinite(call(name, half))
        return
    scale = max(1.0, np.max(np.abs(full)))
    np.testing.assert_allclose(call(name, half), full, atol=0.05 * scale)


@pytest.mark.slow
@calls
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_or_not_finite(name, value):
    """Never a number that looks like an answer."""
    x = jnp.asarray(GRID).at[0, 0, 0].set(value)
    try:
        result = call(name, x)
    except FAILURES as error:
        assert "finite" in str(error) or "NaN" in str(error) or "levels" in str(error), str(error)
        return
    assert not np.all(np.isfinite(result))


@scores
@pytest.mark.parametrize("scale", ["0 to 255", "0 to 1", "noisy"])
def test_images_off_the_grid_are_not_scored(name, scale):
    kind = jnp.result_type(float)
    x = {
        "0 to 255": 127.5 * (GRID + 1),
        "0 to 1": 0.5 * (GRID + 1),
        "noisy": GRID + 0.1 * np.random.default_rng(0).standard_normal(GRID.shape),
    }[scale]
    text = refused(name, jnp.asarray(x, kind))
    assert "levels" in text and "from" in text


# What takes a whole number, as a function of it.
class Written(eqd.AbstractWriter):
    """A writer to memory."""

    def of(self, num):
        eqd.generate_to(self, eqd.DDIM(1), ORACLE, num, (2,), key=KEY)
        return self.samples

    def create(self, call):
        assert call["num"] > 0

    def open(self, call):
        raise AssertionError("for other processes")

    def present(self):
        return set()

    def has(self, start, digest):
        return False

    def write(self, start, digest, samples):
        self.samples = samples

    def finish(self, chunks):
        assert list(chunks) == [0]


COUNTS = {
    "cosine_schedule": eqd.cosine_schedule,
    "linear_schedule": lambda n: eqd.linear_schedule(n, beta_min=1e-6, beta_max=1e-3),
    "alpha_bar_schedule": lambda n: eqd.alpha_bar_schedule(lambda u: 1 - 0.9 * u, n),
    "discretise": lambda n: eqd.discretise(eqd.VPSDE(), n),
    "LearnedVPSDE": lambda n: eqd.LearnedVPSDE(units=n),
    "uniform_times": lambda n: eqd.uniform_times(SCHEDULE, n),
    "trailing_times": lambda n: eqd.trailing_times(eqd.VPSDE(), n),
    "quadratic_times": lambda n: eqd.quadratic_times(eqd.VPSDE(), n),
    "log_snr_times": lambda n: eqd.log_snr_times(eqd.VPSDE(), n),
    "karras_times": lambda n: eqd.karras_times(eqd.VPSDE(), n),
    "schedule_times": lambda n: eqd.schedule_times(eqd.VPSDE(), n),
    "Grid": eqd.Grid,
    "DDIM": eqd.DDIM,
    "Ancestral": eqd.Ancestral,
    "StochasticHeun": eqd.StochasticHeun,
    "DPMSolverPP": eqd.DPMSolverPP,
    "UniPC": eqd.UniPC,
    "SDEDPMSolverPP": eqd.SDEDPMSolverPP,
    "DiffPIR": lambda n: eqd.DiffPIR(DOUBLED, n),
    "DiffPIR, linearisations": lambda n: eqd.DiffPIR(DOUBLED, linearisations=n),
    "DAPS": lambda n: eqd.DAPS(DOUBLED, n, flow_steps=n),
    "LinearisedDraw": eqd.LinearisedDraw,
    "LangevinDraw": eqd.LangevinDraw,
    "TwistedSMC": lambda n: eqd.TwistedSMC(2, n, batch_size=n),
    "PredictorCorrector": eqd.PredictorCorrector,
    "ProbabilityFlow": lambda n: eqd.ProbabilityFlow(num_steps=n),
    "ReverseSDE": lambda n: eqd.ReverseSDE(num_steps=n),
    "Langevin": lambda n: eqd.Langevin(steps=n),
    "AnnealedLangevin": lambda n: eqd.AnnealedLangevin(steps=n),
    "Constrained": lambda n: eqd.Constrained(
        eqd.DDIM(2), eqd.Inpaint(GRID, np.ones((2, 3))), repeats=n
    ),
    "ExactTrace": lambda n: eqd.ExactTrace(chunk=n),
    "Hutchinson": eqd.Hutchinson,
    "LossSecondMoment": lambda n: eqd.LossSecondMoment(SCHEDULE, history=n),
    "JacobianCovariance": eqd.JacobianCovariance,
    "IsotropicCovariance": lambda n: eqd.IsotropicCovariance(1.0, iterations=n),
    "generate": lambda n: eqd.generate(eqd.DDIM(1), ORACLE, n, (2,), key=KEY),
    "generate_to": lambda n: Written().of(n),
    "map_examples": lambda n: eqd.map_examples(
        lambda x, key: 2 * x, np.ones(3, np.float32), batch_size=n, key=KEY
    ),
    "section_timesteps": lambda n: eqd.section_timesteps(8, (n,)),
    "ddim_timesteps": lambda n: eqd.ddim_timesteps(8, n),
    "optimal_timesteps": lambda n: eqd.optimal_timesteps(
        eqd.pairwise_terms(ORACLE, GRID[None], [1, 4, 7], levels=LEVELS, key=KEY), n
    ),
    "TruncatedNormalDequantisation": lambda n: eqd.TruncatedNormalDequantisation(n),
    "UniformDequantisation": lambda n: eqd.UniformDequantisation(n),
    "GaussianDequantisation": lambda n: eqd.GaussianDequantisation(n),
}
counts = pytest.mark.parametrize("name", COUNTS)


@counts
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, jnp.int32], ids=str)
def test_whole_numbers_of_every_kind_count(name, kind):
    made, expected = COUNTS[name](kind(2)), COUNTS[name](2)
    same = jax.tree.map(
        lambda a, b: np.array_equal(a, b) if eqx.is_array(a) else True, made, expected
    )
    assert jax.tree.all(same)
    assert jax.tree.structure(made) == jax.tree.structure(expected)


@counts
@pytest.mark.parametrize("bad", [0, -3, 2.0, 2.5, True, "2", np.nan], ids=repr)
def test_what_is_not_a_count_is_refused(name, bad):
    with pytest.raises((ValueError, TypeError)) as error:
        COUNTS[name](bad)
    assert len(str(error.value)) > 30, "a sentence"


# Public calls that take neither an example nor a count; what they take is walked in their tests.
NEITHER = {
    *("GaussianDenoiser", "GaussianMixtureDenoiser", "on", "stop_mean", "FixedArgs", "Batched"),
    *("AutoGuidance", "ClassifierFree", "RescaledClassifierFree", "ProjectedClassifierFree"),
    *("ZeroStarClassifierFree", "ClassifierGuidance", "Clip", "ClipDataAlone"),
    *("DynamicThreshold", "GuidanceInterval", "MeanShift"),
    *("GaussianNoise", "CorrelatedNoise", "PoissonNoise"),
    *("LatLonPadding", "MixedPadding", "PeriodicPadding", "ReflectingPadding", "ZeroPadding"),
    *("Particles", "ZeroCovariance", "LogisticNoise", "VariationalDequantisation"),
    *("EDMWeighting", "LikelihoodWeighting", "MinSNRWeighting", "NoiseWeighting"),
    *("SigmoidWeighting", "VelocityWeighting"),
    *("EDMPreconditioning", "PredictData", "PredictFlow", "PredictNoise", "PredictScore"),
    *("PredictVelocity", "PreviousMean", "CosineVPSDE", "EDMSDE", "KernelSDE", "RectifiedFlow"),
    *("SubVPSDE",),
    *("VESDE", "VPSDE", "LogNoise", "ScaledTime", "Schedule", "respace", "zero_terminal_snr"),
    *("AncestralPredictor", "DiffraxPredictor", "EulerMaruyama", "ReverseDiffusion"),
    *("load_model", "save_model", "LikelihoodImportance", "VelocityImportance", "LogitNormal"),
    *("LogNormal", "LowDiscrepancy"),
    *("SmoothedSecondMoment", "Uniform", "AnalyticVariance", "FixedLarge", "FixedSmall", "Learned"),
    *("LearnedRange", "discretised_gaussian_log_likelihood"),
    *("discretised_gaussian_log_likelihood_exact", "grid_gaussian_log_likelihood"),
    *("variance_minimising",),
    # Wraps any function.
    "unchecked",
    # Records, made by the library alone.
    *("BitsPerDim", "ContinuousTerms", "Estimate", "FailedExamples", "Linearised"),
    *("LogLikelihood", "PairwiseTerms", "Prediction", "Step", "Trajectory"),
    "ContinuousBound",
    "VariationalBound",
}


def test_every_public_call_is_walked():
    public = {
        name
        for name, value in vars(eqd).items()
        if callable(value)
        and not name.startswith(("_", "Abstract"))
        and getattr(inspect.getmodule(value), "__name__", "").startswith("eqdiff")
    }
    walked = {name.split(".")[0].split(",")[0] for name in (*CALLS, *SCORES, *COUNTS)}
    assert public - walked - NEITHER == set(), "join CALLS, SCORES, COUNTS or NEITHER"
    assert (walked | NEITHER) - public == set(), "no longer public"
