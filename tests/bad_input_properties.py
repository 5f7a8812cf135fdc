"""What must hold of the numerics at any shape and any value: compared with NumPy in extended precision."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis
import hypothesis.extra.numpy as arrays
import numpy as np
import torch
from bad_input_arguments import FAMILIES
from bad_input_commands import VALUES, VERBS, refused, run
from bad_input_engines import make_vae
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from inference import ess, log_joint, log_weights, pareto_k
from inference.batches import fetch, require_data
from inference.counts import require_count
from inference.results import summarise
from inference.weights import log_mean_exp, mean_and_se
from pyro_vae import LinearGaussian, load
from pyro_vae.cli.help import help_of, options_in, parts_in
from pyro_vae.cli.parsing import VERBS as COMMANDS
from pyro_vae.parts import catalog

__all__ = ["EXAMPLES", "PROPERTIES", "Property"]

# How many examples of each property have been run.
EXAMPLES: Counter[str] = Counter()

LIMIT = {torch.float32: 1e18, torch.float64: 1e100}


@dataclass(frozen=True)
class Property:
    """What must hold of everything that the strategies draw.

    Attributes:
        holds: raises where it does not.
        drawn: strategies by argument.
        quick: examples in every run of the tests.
        slow: examples of the long run.
        before: is called once, outside the strategies.
    """

    holds: Callable[..., None]
    drawn: dict[str, Any]
    quick: int
    slow: int
    before: Callable[[], None] = lambda: None

    def check(self, name: str, size: int) -> None:
        """Draw so many examples."""
        self.before()

        def counted(**drawn: Any) -> None:
            EXAMPLES[name] += 1
            self.holds(**drawn)

        settings = hypothesis.settings(
            max_examples=size,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        settings(hypothesis.given(**self.drawn)(counted))()


def _floats(limit: float, *, finite: bool = True) -> Any:
    edges = [0.0, -0.0, 1e-30, -1e-30, limit, -limit, 1e-300, 1.0, 745.2, -745.2]
    edges += [] if finite else [math.inf, -math.inf, math.nan]
    return st.one_of(
        st.floats(-limit, limit),
        st.floats(-10, 10),
        st.sampled_from([edge for edge in edges if abs(edge) <= limit or not finite]),
    )


def _matrix(min_rows: int, limit: float, *, finite: bool = True) -> Any:
    shape = st.tuples(st.integers(min_rows, min_rows + 40), st.integers(1, 4))
    return arrays.arrays(np.float64, shape, elements=_floats(limit, finite=finite))


def _sixtyfourths() -> Any:
    """Numbers whose sums with integers are exact: equal weights stay equal."""
    shape = st.tuples(st.integers(25, 65), st.integers(1, 4))
    return arrays.arrays(np.int64, shape, elements=st.integers(-3200, 3200)).map(lambda whole: whole / 64)


def weights_agree(log_w: np.ndarray) -> None:
    """Log-mean-exp and the effective number of draws, against long doubles; NaN only where they are not defined."""
    came, se = log_mean_exp(torch.from_numpy(log_w))
    size = ess(torch.from_numpy(log_w))
    wide = log_w.astype(np.longdouble)
    for n in range(log_w.shape[1]):
        column = wide[:, n]
        top = column.max()
        if not np.isfinite(top):
            assert math.isnan(size[n])
            assert math.isnan(came[n]) if np.isnan(top) else came[n] == float(top)
            continue
        relative = np.exp(column - top)
        expected = top + np.log(relative.mean())
        assert abs(float(came[n]) - float(expected)) <= 1e-12 * max(1.0, abs(float(expected)))
        assert abs(float(size[n]) - float(relative.sum() ** 2 / (relative**2).sum())) <= 1e-9 * len(column)
        assert 1 - 1e-9 <= float(size[n]) <= len(column) * (1 + 1e-9)
        if len(column) > 1:
            share = relative / relative.mean()
            exact = math.sqrt(float(((share - 1) ** 2).sum()) / (len(column) * (len(column) - 1)))
            assert abs(float(se[n]) - exact) <= 1e-9 * max(1.0, exact)
        else:
            assert math.isnan(se[n])


def tails_do_not_depend_on_the_constant(log_w: np.ndarray, shift: float) -> None:
    """The tail index: NaN or a number of moderate size, the same for weights times a constant."""
    k = pareto_k(torch.from_numpy(log_w))
    moved = pareto_k(torch.from_numpy(log_w + shift))
    assert k.shape == (log_w.shape[1],)
    finite = np.isfinite(log_w).all(0)
    for n in np.flatnonzero(finite):
        assert math.isnan(k[n]) or math.isfinite(k[n])
        if not math.isnan(k[n]) and not math.isnan(moved[n]):
            assert abs(float(k[n] - moved[n])) < 1e-6 * max(1.0, abs(float(k[n])))


def means_agree(value: np.ndarray, se: np.ndarray) -> None:
    """Means with both errors, against long doubles."""
    size = min(len(value), len(se))
    value, se = value[:size], np.abs(se[:size])
    came = summarise(torch.from_numpy(value), torch.from_numpy(se))
    wide = value.astype(np.longdouble)
    scale = float(np.abs(wide).max()) or 1.0
    assert abs(came["mean"] - float(wide.mean())) <= 1e-12 * scale
    if size == 1:
        assert math.isnan(came["se"])
    else:
        assert abs(came["se"] - float(wide.std(ddof=1)) / math.sqrt(size)) <= 1e-12 * scale * math.sqrt(size) + 1e-150
    exact = float(np.sqrt((se.astype(np.longdouble) ** 2).sum()) / size)
    assert abs(came["mc_se"] - exact) <= 1e-12 * max(exact, 1e-300) + 1e-160
    mean, own = mean_and_se(torch.from_numpy(value)[:, None])
    assert abs(float(mean[0]) - float(wide.mean())) <= 1e-12 * scale
    assert math.isnan(own[0]) == (size == 1)


def counts_are_integers(value: Any, least: int) -> None:
    """A count is an `int` of at least the least, and everything else an error that shows it."""
    is_count = type(value) is int and value >= least
    try:
        require_count("count", value, least=least)
    except ValueError as error:
        assert not is_count and str(error).startswith("count: expected an integer of at least"), error
    else:
        assert is_count


def reading_is_indexing(array: np.ndarray, index: list[int]) -> None:
    """Data are read as NumPy reads them, or refused in words."""
    try:
        size = require_data(array)
        chosen = torch.tensor([i % size for i in index])
        came = fetch(array, chosen)
    except (TypeError, ValueError) as error:
        readable = (
            array.ndim == 2
            and array.size
            and array.dtype.kind in "uif"
            and array.dtype.itemsize > (array.dtype.kind == "f") * 2
        )
        native = array.dtype.isnative and array.dtype.str[1:] not in ("u2", "u4", "u8")
        assert not (readable and native), error
        assert "expected" in str(error) and "data" in str(error)
        return
    np.testing.assert_array_equal(came.numpy(), array[chosen.numpy()])


def families_keep_their_word(name: str, num_latents: int, dtype: torch.dtype, numbers: list[float], rows: int) -> None:
    """At any finite row a family makes a distribution: finite draws, log densities that are numbers."""
    assume(name != "CouplingFlow" or num_latents > 1)
    torch.manual_seed(0)
    family = FAMILIES[name](num_latents).to(dtype)
    wanted = rows * family.num_params
    numbers = (numbers * (wanted // len(numbers) + 1))[:wanted]
    q = family(torch.tensor(numbers, dtype=dtype).reshape(rows, family.num_params))
    assert (tuple(q.batch_shape), tuple(q.event_shape)) == ((rows,), (num_latents,))
    z = q.sample()
    assert z.dtype == dtype and bool(z.isfinite().all()), (numbers, z)
    if family.has_log_prob:
        log_q = q.log_prob(z)
        assert not bool(log_q.isnan().any()), log_q
        assert not bool((log_q == math.inf).any())


def families_come_back(name: str, num_latents: int, numbers: list[float]) -> None:
    """From rows to a distribution, to rows, to the same distribution."""
    torch.manual_seed(0)
    family = FAMILIES[name](num_latents).double()
    numbers = (numbers * (family.num_params // len(numbers) + 1))[: family.num_params]
    q = family(torch.tensor([numbers], dtype=torch.float64))
    again = family(family.params_from(q))
    z = q.sample((3,))
    torch.testing.assert_close(again.log_prob(z), q.log_prob(z), rtol=1e-6, atol=1e-6)


_SUPPORTED: dict[str, Callable[[Tensor], Tensor]] = {
    "bernoulli": lambda u: (u > 0.5).to(u),
    "binomial": lambda u: (3 * u).round(),
    "beta": lambda u: u.clamp(1e-6, 1 - 1e-6),
    "beta-binomial": lambda u: (3 * u).round(),
    "categorical": lambda u: (3 * u).round() / 3,
    "continuous-bernoulli": lambda u: u,
    "discretized-gaussian": lambda u: (3 * u).round() / 3,
    "discretized-logistic": lambda u: (3 * u).round() / 3,
    "discretized-logistic-mixture": lambda u: (3 * u).round() / 3,
}


def likelihoods_have_no_nan(name: str, dtype: torch.dtype, numbers: list[float], u: list[float]) -> None:
    """At any output of a decoder, and any x of the support, log p(x | z) is a number or minus infinity."""
    likelihood = _likelihood(name).to(dtype)
    num_values = 2
    wanted = num_values * likelihood.num_params
    output = torch.tensor((numbers * wanted)[:wanted], dtype=dtype)
    x = torch.tensor((u * num_values)[:num_values], dtype=dtype)
    if name in _SUPPORTED:
        x = _SUPPORTED[name](x)
    elif likelihood.base_measure == "counting":
        x = (50 * x).round()
    try:
        likelihood.check(x)
    except ValueError:
        assume(False)
    p = likelihood(output)
    log_p = p.log_prob(x)
    assert log_p.dtype == dtype
    assert not bool(log_p.isnan().any()), (name, dtype, output, x, log_p)
    if likelihood.base_measure == "counting":
        assert float(log_p) <= 1e-3, (name, output, x, log_p)


# What the constructors ask for, at two data values.
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "binomial": (3,),
    "categorical": (4, 1 / 3),
    "discretized-gaussian": (4, 1 / 3),
    "discretized-logistic": (4, 1 / 3),
    "discretized-logistic-mixture": (4, 1 / 3),
    "gaussian-output-scale": (2,),
}


def _likelihood(name: str) -> Any:
    return catalog("likelihood")[name](*_ARGUMENTS.get(name, ()))


def joint_densities_are_numbers(x: np.ndarray, scale: float) -> None:
    """log p(x, z) and log weights of finite x of any size: the closed form, or minus infinity, never NaN."""
    vae = make_vae().double()
    rows = torch.from_numpy(x)
    z = torch.linspace(-scale, scale, 3 * len(rows) * 2, dtype=torch.float64).reshape(3, len(rows), 2)
    came = log_joint(vae.model, rows, z).detach()
    mean = vae.decoder(z.reshape(-1, 2)).reshape(3, len(rows), 4).detach().numpy().astype(np.longdouble)
    residual = (x.astype(np.longdouble) - mean) / 0.5
    exact = -0.5 * (residual**2).sum(-1) - 4 * np.log(0.5 * np.sqrt(2 * np.pi))
    exact += (-0.5 * z.numpy().astype(np.longdouble) ** 2 - 0.5 * np.log(2 * np.pi)).sum(-1)
    np.testing.assert_allclose(came.numpy(), exact.astype(np.float64), rtol=1e-9, atol=1e-9)
    assert not bool(log_weights(vae.model, vae.guide, rows).isnan().any())


def evidence_is_exact(x: np.ndarray, scale: float) -> None:
    """The closed form of a linear model, against a dense multivariate normal in long doubles."""
    weight = torch.tensor([[1.0, 0.5], [0.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    rows = torch.from_numpy(x[:, :3])
    assume(rows.shape[1] == 3)
    came = LinearGaussian(weight, torch.zeros(3, dtype=torch.float64), scale).log_evidence(rows).detach().numpy()
    covariance = weight.numpy() @ weight.numpy().T + scale**2 * np.eye(3)
    whitened = np.linalg.solve(np.linalg.cholesky(covariance), rows.numpy().T)
    exact = -0.5 * (whitened**2).sum(0) - 0.5 * np.linalg.slogdet(covariance)[1] - 1.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(came, exact, rtol=1e-6, atol=1e-6)


def loading_keeps_every_row(array: np.ndarray, seed: int) -> None:
    """An array is loaded with all its rows, or refused in words."""
    try:
        data = load(array, split_seed=seed)
    except ValueError as error:
        assert "expected" in str(error), error
        good = array.ndim in (2, 3, 4) and len(array) >= 10 and array.size and array.dtype.kind in "buif"
        good = (
            good
            and np.isfinite(array.astype(np.float64)).all()
            # Whole numbers that double precision holds.
            and (array.dtype.kind not in "ui" or ((array <= 2**53) & (array >= -(2**53))).all())
            and not (array.ndim == 4 and array.shape[1] in (1, 3, 4))
        )
        assert not good, error
        return
    splits = (data.train, data.validation, data.test)
    assert sum(map(len, splits)) == len(array)
    assert min(map(len, splits)) >= 1
    flat = array.reshape(len(array), -1).astype(np.float64)
    gray = array.dtype == np.uint8 and array.max() > 1
    for split in splits:
        expected = flat[split.rows.numpy()] / (255.0 if gray else 1.0)
        np.testing.assert_allclose(split.tensor().double().numpy(), expected, rtol=1e-12)


_OPTIONS: dict[str, list[str]] = {}


def learn_the_grammar() -> None:
    """Options and parts of every verb, as its help lists them."""
    for verb in () if _OPTIONS else VERBS:
        text = help_of(COMMANDS[verb], [])
        parts = [part for kind in parts_in(text).values() for part in kind]
        _OPTIONS[verb] = [*options_in(text), *parts] or ["--help"]


@st.composite
def command_lines(draw: Any) -> list[str]:
    """A verb, and words of its grammar, values and garbage in any order."""
    verb = draw(st.one_of(st.sampled_from(VERBS), st.sampled_from(VERBS), st.text(max_size=5)))
    words = [verb]
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.integers(0, 5))
        if kind <= 2 and verb in COMMANDS:
            words.append(draw(st.sampled_from(_OPTIONS[verb])))
            if draw(st.booleans()):
                words.append(draw(st.sampled_from(VALUES)))
        elif kind <= 4:
            words.append(draw(st.sampled_from(VALUES)))
        else:
            words.append(draw(st.text(max_size=8)))
    return words


def commands_end_in_words(words: list[str]) -> None:
    """Whatever is typed: an answer and 0, or one line and 2; never a traceback."""
    outcome = run(words)
    if outcome.code == 0:
        assert not outcome.err or "Traceback" not in outcome.err
    elif words[:1] == [] or outcome.out:
        assert outcome.code in (1, 2), outcome
    else:
        refused(outcome)


_DTYPES = st.sampled_from([torch.float32, torch.float64])
_ANY = st.one_of(
    st.integers(-5, 5),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=3),
    st.lists(st.integers(), max_size=2),
    st.complex_numbers(),
    st.sampled_from([np.int64(3), np.float64(3), np.array(3), torch.tensor(3), int, 2**70]),
)
_SCALARS = st.one_of(
    arrays.scalar_dtypes(),
    st.sampled_from([np.dtype(kind) for kind in ("u1", "i2", "i4", "i8", "f4", "f8", "f2", "b1", "U1", "O", "c16")]),
)
_ARRAYS = _SCALARS.flatmap(
    lambda dtype: (
        st.one_of(
            arrays.arrays(dtype, st.tuples(st.integers(1, 30), st.integers(1, 4))),
            arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=12)),
        )
        if dtype.kind != "O"
        else st.just(np.full((12, 2), 1.0, dtype=object))
    )
)
_LIKELIHOODS = st.sampled_from(list(catalog("likelihood")))

PROPERTIES: dict[str, Property] = {
    "weights": Property(weights_agree, {"log_w": _matrix(1, 1e6, finite=False)}, 150, 2000),
    "tails": Property(
        tails_do_not_depend_on_the_constant,
        {"log_w": _sixtyfourths(), "shift": st.integers(-64, 64).map(float)},
        60,
        1000,
    ),
    "means": Property(
        means_agree,
        {
            "value": arrays.arrays(np.float64, st.integers(1, 50), elements=_floats(1e100)),
            "se": arrays.arrays(np.float64, st.integers(1, 50), elements=_floats(1e100)),
        },
        100,
        1500,
    ),
    "counts": Property(counts_are_integers, {"value": _ANY, "least": st.integers(-2, 5)}, 150, 2000),
    "reading": Property(
        reading_is_indexing,
        {"array": _ARRAYS, "index": st.lists(st.integers(0, 50), min_size=1, max_size=6)},
        150,
        2000,
    ),
    "families": Property(
        families_keep_their_word,
        {
            "name": st.sampled_from(list(FAMILIES)),
            "num_latents": st.integers(1, 4),
            "dtype": _DTYPES,
            "numbers": st.lists(_floats(1e6), min_size=1, max_size=20),
            "rows": st.integers(1, 3),
        },
        150,
        2500,
    ),
    "round trips": Property(
        families_come_back,
        {
            "name": st.sampled_from(["MeanField", "FullCovariance", "LowRank"]),
            "num_latents": st.integers(2, 4),
            "numbers": st.lists(st.floats(-3, 3), min_size=1, max_size=20),
        },
        60,
        1000,
    ),
    "likelihoods": Property(
        likelihoods_have_no_nan,
        {
            "name": _LIKELIHOODS,
            "dtype": _DTYPES,
            "numbers": st.lists(_floats(1e30), min_size=1, max_size=12),
            "u": st.lists(st.floats(0, 1), min_size=2, max_size=2),
        },
        250,
        4000,
    ),
    "joint densities": Property(
        joint_densities_are_numbers,
        {
            "x": arrays.arrays(np.float64, st.tuples(st.integers(1, 3), st.just(4)), elements=_floats(1e30)),
            "scale": st.sampled_from([1e-30, 1.0, 1e15, 1e30]),
        },
        60,
        800,
    ),
    "evidence": Property(
        evidence_is_exact,
        {
            "x": arrays.arrays(np.float64, st.tuples(st.integers(1, 3), st.just(3)), elements=_floats(1e30)),
            "scale": st.floats(1e-3, 1e3),
        },
        60,
        800,
    ),
    "loading": Property(loading_keeps_every_row, {"array": _ARRAYS, "seed": st.integers(0, 5)}, 120, 1500),
    "commands": Property(commands_end_in_words, {"words": command_lines()}, 60, 800, learn_the_grammar),
}
