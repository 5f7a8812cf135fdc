"""Bad values of arguments: counts, numbers, families, losses, settings, weights and records of `inference`."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from bad_input import Case
from bad_input_engines import GAPS, NUM_DATA, PATH, SEARCH, TRAINING, clean_data, make_vae
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn

import inference as lib
from inference import IWAE, Adam, FullCovariance, Local, MeanField, Search, Training

__all__ = ["cases"]

NAN, INF = math.nan, math.inf
NO_COUNTS = (0, -1, 1.5, True, "3", NAN)
NO_NUMBERS = (NAN, "a", None)
COUNT = "expected an? (even number|integer)"

FAMILIES: dict[str, Callable[..., Any]] = {
    name: getattr(lib, name)
    for name in (
        "MeanField",
        "FullCovariance",
        "LowRank",
        "PlanarFlow",
        "CouplingFlow",
        "AutoregressiveFlow",
        "SylvesterFlow",
        "HouseholderFlow",
        "MixtureOfGaussians",
    )
}
LOSSES = ("IWAE", "DReG", "PathwiseELBO", "AnalyticKL", "StickingTheLanding", "ScoreFunctionELBO", "WakeSleep", "Loss")

# Class, option, values that it refuses, what it says.
OPTIONS: list[tuple[str, str, tuple[Any, ...], str]] = [
    *(
        ("Training", name, NO_COUNTS, COUNT)
        for name in ("epochs", "batch_size", "local_steps", "num_particles", "patience")
    ),
    ("Training", "warm_up", NO_COUNTS[1:], COUNT),
    ("Training", "shards", NO_COUNTS, COUNT),
    ("Training", "num_particles", (3,), "expected an even number"),
    ("Training", "local_lr", (0, -1, *NO_NUMBERS), "local_lr: expected a positive step size; got"),
    ("Training", "tol_elbo", (-1, *NO_NUMBERS), "tol_elbo: expected 0"),
    ("Training", "tol_params", (-1, *NO_NUMBERS), "tol_params: expected 0"),
    ("Training", "precision", ("float16", None), "precision: expected"),
    ("Training", "compile", ("yes", None), "compile: expected"),
    ("Adam", "lr", (0, -1, INF, *NO_NUMBERS), "lr: expected a positive step size"),
    ("Adam", "eps", (0, -1, *NO_NUMBERS), "eps: expected a positive number"),
    ("Adam", "betas", ((0.9, 1.0), (0.9, NAN), (0.9,), 0.9, None), "betas: expected two numbers"),
    ("SGD", "lr", (0, -1, INF, *NO_NUMBERS), "lr: expected a positive step size"),
    ("SGD", "momentum", (-1, 1, *NO_NUMBERS), "momentum: expected a number in"),
    ("RobbinsMonro", "exponent", (0, 0.5, 1.1, *NO_NUMBERS), "exponent: expected a number in"),
    ("RobbinsMonro", "delay", (0, -1, *NO_NUMBERS), "delay: expected a positive number"),
    ("Staircase", "factor", (0, 1.5, *NO_NUMBERS), "factor: expected a number in"),
    ("Staircase", "num_stages", NO_COUNTS, COUNT),
    ("Staircase", "growth", NO_COUNTS, COUNT),
    ("GeometricSchedule", "first", (0, 1, *NO_NUMBERS), "first: expected an inverse temperature"),
    ("SigmoidalSchedule", "delta", (0, -1, INF, *NO_NUMBERS), "delta: expected a positive number"),
    *(("Annealing", name, (*NO_COUNTS, 1), COUNT) for name in ("num_temperatures", "num_chains", "num_pilot_chains")),
    ("HMC", "num_leapfrog", NO_COUNTS, COUNT),
    ("HMC", "target_accept", (0, 1, *NO_NUMBERS), "target_accept: expected a probability"),
    ("HMC", "jitter", (-1, 1, *NO_NUMBERS), "jitter: expected a number in"),
    ("HMC", "compile", ("x",), "compile: expected"),
    ("HMC", "precision", ("x",), "precision: expected"),
    ("Search", "lr", (0, -1, *NO_NUMBERS), r"search.lr: expected a positive number"),
    ("Search", "settle", (0, -1, *NO_NUMBERS), r"search.settle: expected a positive number"),
    *(
        ("Search", name, (*NO_COUNTS, None, 3 if name != "max_rounds" else 0), "expected an? (even|integer|positive)")
        for name in ("num_particles", "first_round", "max_rounds", "num_judge_draws", "num_select_draws")
    ),
    ("Defensive", "widen", (0, -1, INF, *NO_NUMBERS), "widen: expected a positive factor"),
    ("Defensive", "prior_weight", (-0.1, 1, *NO_NUMBERS), "prior_weight: expected a share"),
]

# Engine, argument, values that it refuses, what it says.
ARGUMENTS: list[tuple[str, str, tuple[Any, ...], str]] = [
    ("measure_gaps", "num_draws", (*NO_COUNTS, 5, None, 4.0), COUNT),
    ("measure_gaps", "num_evidence_draws", (*NO_COUNTS, 51, 48), COUNT),
    ("measure_gaps", "tol", (0, -1, *NO_NUMBERS), "tol: expected a positive number"),
    ("measure_gaps", "seed", (-1, 1.5, "a", 2**63, True), "seed: expected an integer from 0"),
    ("measure_gaps", "log_evidence", (torch.zeros(5), torch.zeros(6, 1)), "log_evidence: expected"),
    ("measure_gaps", "log_evidence", (torch.full((6,), NAN), torch.full((6,), INF)), "log_evidence: expected finite"),
    ("measure_gaps", "site", ("w",), "site 'w': expected a latent site of this name"),
    ("measure_gaps", "given", ({"w": torch.zeros(2)},), "the model samples nothing outside the data plate"),
    ("measure_gaps", "families", ([FullCovariance(3)],), "expected .* got"),
    ("measure_gaps", "family", (FullCovariance(3),), "expected .* got"),
    ("elbo", "num_draws", (*NO_COUNTS, 2, 5), COUNT),
    ("iwae", "num_draws", (*NO_COUNTS, 48, 51), COUNT),
    ("refine", "num_draws", (*NO_COUNTS, 5), COUNT),
    ("refine", "init", (torch.zeros(5, 4), torch.full((6, 4), NAN)), "init: expected finite rows of shape"),
    ("refine", "site", ("w",), "site 'w': expected a latent site"),
    ("fit_em", "restart", ("always", None), "restart: expected 'never' or 'every visit'; got"),
    ("fit_em", "encoder_gradient", ("all",), "encoder_gradient: expected"),
    ("fit_em", "restart", ("every visit",), "needs a guide with `params`; got NoneType"),
    ("fit_em", "init", (torch.zeros(5, 4), torch.full((6, 4), NAN)), "init: expected finite rows of shape"),
    ("fit_svi", "train", ("model", None), "train: expected 'all' or 'guide'; got"),
    ("fit_svi", "validation", (clean_data()[:0],), "validation: expected at least one datapoint"),
    ("fit_svi", "validation", (torch.zeros(3, 7).double(),), "validation: expected rows of 4 values.*got rows of 7"),
    ("fit_svi", "validation", (clean_data().float(),), "expected torch.float64"),
    ("fit_svi", "validation", (clean_data() * NAN,), "not finite|finite"),
    ("bdmc", "num_data", NO_COUNTS, COUNT),
    ("bdmc", "num_draws", (0, 10, 51), COUNT),
    ("quadrature", "tol", (0, -1, *NO_NUMBERS), "tol: expected a positive number"),
    ("quadrature", "max_points", (*NO_COUNTS, None), COUNT),
    ("quadrature", "max_points", (10,), "not stable to .* with 10 grid points. Raise max_points"),
    ("sample_posterior", "num_superchains", (*NO_COUNTS, 1), COUNT),
    ("sample_posterior", "chains_per_superchain", NO_COUNTS, COUNT),
    ("sample_posterior", "num_warmup", NO_COUNTS[1:], COUNT),
    ("sample_posterior", "num_draws", (*NO_COUNTS, 1), COUNT),
    ("sample_posterior", "init", ("z", torch.zeros(6, 2)), "init: expected a guide or None"),
    ("fit_mcem", "num_chains", NO_COUNTS, COUNT),
    ("fit_mcem", "burn_in", NO_COUNTS[1:], COUNT),
    ("sbc", "num_simulations", (*NO_COUNTS, 5), COUNT),
    ("sbc", "num_draws", NO_COUNTS, COUNT),
    ("sbc", "alpha", (0, 1, *NO_NUMBERS), "alpha: expected a probability"),
    ("elbo_surgery", "num_draws", (*NO_COUNTS, 5), COUNT),
    ("elbo_surgery", "threshold", (0, -1, *NO_NUMBERS), "threshold: expected a positive share"),
    ("simulate", "num_data", NO_COUNTS, COUNT),
    ("simulated_gaps", "num_simulations", NO_COUNTS, COUNT),
    ("log_weights", "num_particles", NO_COUNTS, COUNT),
    ("GapTracker", "every", NO_COUNTS, COUNT),
    ("TermTracker", "every", NO_COUNTS, COUNT),
    ("TermTracker", "num_draws", NO_COUNTS, COUNT),
    ("to_datatree", "num_draws", NO_COUNTS, COUNT),
    ("to_datatree", "num_chains", NO_COUNTS, COUNT),
    ("to_datatree", "max_data", NO_COUNTS, COUNT),
    ("to_datatree", "num_predictive", NO_COUNTS, COUNT),
    ("to_datatree", "obs_ids", ([1, 2],), "obs_ids: expected"),
    ("to_datatree", "labels", ([1, 2],), "labels: expected"),
    ("to_datatree", "image_shape", ((3, 3),), "image_shape.*expected|expected.*image_shape"),
    ("draw_globals", "num_draws", NO_COUNTS, "expected"),
]

# Engine, argument, values of another kind, what it says.
KINDS: list[tuple[str, str, tuple[Any, ...], str]] = [
    *(
        (engine, "training", ({"epochs": 1}, None, Training), "training: expected an object of class Training; got")
        for engine in ("fit_svi", "fit_em", "fit_mcem")
    ),
    *(
        (engine, "search", ({"lr": 1}, None, Search), "search: expected an object of class Search; got")
        for engine in ("refine", "iwae", "measure_gaps")
    ),
    *(
        (engine, "annealing", (100, lib.Annealing), "annealing: expected an object of class Annealing; got")
        for engine in ("ais", "bdmc", "measure_gaps")
    ),
    *(
        (engine, "hmc", (5, lib.HMC), "hmc: expected an object of class HMC")
        for engine in ("fit_mcem", "sample_posterior")
    ),
    *(
        (engine, "resume", ("folder",), "resume: expected an object of class Resume; got 'folder'. Pass Resume")
        for engine in ("fit_svi", "fit_em", "fit_mcem", "refine", "iwae", "ais", "measure_gaps")
    ),
    ("iwae", "proposal", ("prior", lib.Defensive), "proposal: expected an object of class Defensive"),
    (
        "measure_gaps",
        "family",
        ([FullCovariance(2)],),
        r"family: expected .*Family; got .*list. Did you mean families=\?",
    ),
    ("measure_gaps", "family", ("full", FullCovariance), "family: expected an object of class Family; got"),
    ("measure_gaps", "families", (FullCovariance(2), "full", None), "families: expected a list of families; got"),
    ("measure_gaps", "families", (["full"], [FullCovariance]), "families: expected an object of class Family; got"),
    ("measure_gaps", "log_evidence", ("iwae", {}, -3.0), "log_evidence: expected exact values"),
    ("measure_gaps", "bounds", (3,), "bounds: expected an object of class Bidirectional"),
    ("measure_gaps", "num_draw", (3,), "unexpected keyword argument 'num_draw'"),
    ("GapTracker", "num_draw", (3,), "unexpected keyword argument 'num_draw'"),
    ("simulated_gaps", "num_draw", (3,), "unexpected keyword argument 'num_draw'"),
    ("fit_svi", "epochs", (3,), "unexpected keyword argument 'epochs'"),
    ("fit_svi", "loss", ("elbo", IWAE, Trace_ELBO), "loss: expected"),
    ("fit_svi", "validation", (clean_data().tolist(),), "validation: expected a tensor"),
    ("fit_em", "loss", ("iwae", Trace_ELBO()), "loss: expected"),
    ("refine", "loss", ("iwae", Trace_ELBO()), "loss: expected"),
    ("ais", "start", ("prior", MeanField), "start: expected a guide, a family"),
    ("bdmc", "start", ("prior", MeanField), "start: expected a guide, a family"),
    (
        "fit_mcem",
        "validation_family",
        ("mean-field", MeanField),
        "validation_family: expected an object of class Family",
    ),
    ("to_datatree", "image_shape", (4,), "image_shape: expected"),
    ("to_datatree", "gaps", ("gaps",), "gaps: expected an object of class Gaps"),
]


def _engine(name: str, **options: Any) -> Any:
    vae, x = make_vae(), clean_data()
    p, q = vae.model, vae.guide
    given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "measure_gaps": ((p, q, x), GAPS),
        "simulated_gaps": ((p, q, x), GAPS),
        "elbo": ((p, q, x), {}),
        "iwae": ((p, q, x), {"num_draws": 50, "search": SEARCH}),
        "refine": ((p, MeanField(2), x), {"num_draws": 4, "search": SEARCH}),
        "fit_svi": ((p, q, x), {"training": TRAINING}),
        "fit_em": ((p, MeanField(2), x), {"training": TRAINING}),
        "fit_mcem": ((p, x), {"num_chains": 2, "burn_in": 2, "training": TRAINING}),
        "ais": ((p, x), {"annealing": PATH}),
        "bdmc": ((p, x), {"num_data": 2, "annealing": PATH}),
        "quadrature": ((p, x), {}),
        "sample_posterior": (
            (p, x),
            {"num_superchains": 2, "chains_per_superchain": 2, "num_warmup": 4, "num_draws": 4},
        ),
        "sbc": ((p, q, x), {"num_simulations": 20, "num_draws": 4}),
        "simulate": ((p, x), {"num_data": 2}),
        "to_datatree": ((p, q, x), {"num_draws": 2, "num_chains": 2}),
        "TermTracker": ((p, q, {"training": x}), {}),
    }
    arguments, usual = given.get(name, ((p, q, x), {}))
    return getattr(lib, name)(*arguments, **{**usual, **options})


def _show(value: Any) -> str:
    return f"tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:40]


def cases() -> Iterator[Case]:
    """Every argument with values that it must refuse."""
    for table, kind, of_engine in (
        (OPTIONS, ValueError, False),
        (ARGUMENTS, ValueError, True),
        (KINDS, TypeError, True),
    ):
        for name, argument, values, error in table:
            for value in values:
                make = _engine if of_engine else lambda name, **options: getattr(lib, name)(**options)
                yield Case(
                    of=f"inference.{name}",
                    what=f"{argument}={_show(value)}",
                    call=lambda make=make, name=name, argument=argument, value=value: make(name, **{argument: value}),
                    error=error,
                    kind=kind,
                )
    yield from _families()
    yield from _guides()
    yield from _losses()
    yield from _settings()
    yield from _weights()
    yield from _records()
    yield from _programs()


def _families() -> Iterator[Case]:
    for name, make in FAMILIES.items():
        of = f"inference.{name}"
        for value in (*NO_COUNTS, None, np.int64(2)):
            yield Case(of=of, what=f"D={value!r}", call=lambda make=make, value=value: make(value), error=COUNT)

        def at(params: Callable[[int], Any], make: Callable[..., Any] = make, size: int = 2) -> Callable[[], Any]:
            def drawn() -> Any:
                family = make(size)
                return family(params(family.num_params)).sample()

            return drawn

        number = "expected floating-point params; got"
        yield Case(of=of, what="params a list", call=at(lambda K: [0.0] * K), error="tensor .*got list", kind=TypeError)
        yield Case(of=of, what="params an array", call=at(lambda K: np.zeros(K)), error="got ndarray", kind=TypeError)
        yield Case(
            of=of, what="params too narrow", call=at(lambda K: torch.zeros(3, K - 1)), error=r"expected params of sh"
        )
        yield Case(
            of=of, what="params a number", call=at(lambda K: torch.tensor(0.0)), error=r"expected params of shape"
        )
        yield Case(of=of, what="params integers", call=at(lambda K: torch.zeros(3, K).long()), error=number)
        yield Case(of=of, what="params complex", call=at(lambda K: torch.zeros(3, K) + 0j), error=number)
        yield Case(of=of, what="no row", call=at(lambda K: torch.zeros(0, K)), clean=lambda: torch.zeros(0, 2))
        for value in (1e30, -1e30):
            yield Case(of=of, what=f"params {value:g}", call=at(lambda K, value=value: torch.full((3, K), value)))
        if name != "CouplingFlow":
            yield Case(of=of, what="D=1", call=at(lambda K: torch.zeros(3, K), size=1))
        else:
            yield Case(of=of, what="D=1", call=lambda make=make: make(1), error="expected")
        for what, q, kind in (
            ("no distribution", None, TypeError),
            ("a distribution of numbers", dist.Normal(torch.zeros(3), 1.0), ValueError),
            ("another D", dist.Normal(torch.zeros(3), 1.0).to_event(1), ValueError),
        ):
            call = lambda make=make, q=q: make(2).params_from(q)  # noqa: E731
            yield Case(of=of, what=f"params_from {what}", call=call, error="expected .*got", kind=kind)
        yield Case(
            of=of,
            what="params not contiguous",
            call=lambda make=make: _noise_free(make, _spread),
            clean=lambda make=make: _noise_free(make, lambda K: _spread(K).contiguous()),
            tolerance=1e-12,
        )
    for name, option in (
        ("LowRank", "rank"),
        ("PlanarFlow", "num_layers"),
        ("CouplingFlow", "num_layers"),
        ("CouplingFlow", "context"),
        ("AutoregressiveFlow", "num_layers"),
        ("AutoregressiveFlow", "context"),
        ("SylvesterFlow", "num_layers"),
        ("SylvesterFlow", "rank"),
        ("HouseholderFlow", "num_layers"),
        ("MixtureOfGaussians", "num_components"),
    ):
        for value in NO_COUNTS:
            if (option, value) == ("context", 0):
                continue
            call = lambda name=name, option=option, value=value: FAMILIES[name](3, **{option: value})  # noqa: E731
            yield Case(of=f"inference.{name}", what=f"{option}={value!r}", call=call, error="expected")
    for name in ("CouplingFlow", "AutoregressiveFlow"):
        for value in ((0,), (1.5,), 8):
            call = lambda name=name, value=value: FAMILIES[name](3, hidden=value)  # noqa: E731
            yield Case(
                of=f"inference.{name}",
                what=f"hidden={value!r}",
                call=call,
                error="expected",
                kind=(ValueError, TypeError),
            )  # type: ignore[arg-type]
    positive = torch.distributions.constraints.positive
    for what, family, support in (
        ("no family", 3, positive),
        ("a class", MeanField, positive),
        ("a name for the support", MeanField(2), "positive"),
        ("a family twice", lib.Constrained(MeanField(2), positive), positive),
    ):
        call = lambda family=family, support=support: lib.Constrained(family, support)  # noqa: E731
        yield Case(of="inference.Constrained", what=what, call=call, error="expected .*got")
    for value in NO_COUNTS:
        yield Case(of="inference.Family", what=f"D={value!r}", call=lambda value=value: lib.Family(value), error=COUNT)


def _spread(num_params: int) -> Tensor:
    return torch.linspace(-1, 1, 6 * num_params).reshape(3, 2 * num_params)[:, ::2]


def _noise_free(make: Callable[..., Any], params: Callable[[int], Tensor]) -> Tensor:
    torch.manual_seed(0)
    family = make(2)
    torch.manual_seed(0)
    return family(params(family.num_params)).sample()


def _guides() -> Iterator[Case]:
    rows, family = torch.zeros(6, 4), MeanField(2)
    kind = "family: expected an object of class Family; got"
    for what, error, exception, call in (
        ("a name for the family", kind, TypeError, lambda: lib.Amortized("mean-field", nn.Linear(4, 4))),
        ("a class for the family", kind, TypeError, lambda: lib.Amortized(MeanField, nn.Linear(4, 4))),
        ("family and encoder swapped", kind, TypeError, lambda: lib.Amortized(nn.Linear(4, 4), family)),
        ("no encoder", "encoder: expected a module", TypeError, lambda: lib.Amortized(family, None)),
        (
            "too few outputs",
            "expected family.num_params = 4 .*got 3",
            ValueError,
            lambda: lib.Amortized(family, nn.Linear(4, 3)),
        ),
        ("an encoder of pairs", "got tuple", ValueError, lambda: lib.Amortized(family, _Pair()).params(clean_data())),
        ("x a list", "x: expected a tensor", TypeError, lambda: lib.Amortized(family, nn.Linear(4, 4)).params([[0.0]])),
        (
            "x too wide",
            r"\(3, 7\).*Expected",
            ValueError,
            lambda: lib.Amortized(family, nn.Linear(4, 4)).params(torch.zeros(3, 7)),
        ),
        (
            "x float32",
            "got torch.float32",
            ValueError,
            lambda: lib.Amortized(family, nn.Linear(4, 4)).params(clean_data().float()),
        ),
    ):
        yield Case(of="inference.Amortized", what=what, call=call, error=error, kind=exception)
    yield Case(
        of="inference.Amortized",
        what="a function for the encoder",
        call=lambda: lib.Amortized(family, lambda x: x).params(clean_data()),
        clean=clean_data,
    )
    for what, error, exception, call in (
        ("rows too narrow", r"params: expected shape \(N, 4\)", ValueError, lambda: Local(family, rows[:, :3])),
        ("one row alone", r"params: expected shape \(N, 4\)", ValueError, lambda: Local(family, rows[0])),
        ("rows a list", "params: expected .*Tensor; got .*list", TypeError, lambda: Local(family, rows.tolist())),
        ("rows an array", "params: expected .*Tensor; got .*ndarray", TypeError, lambda: Local(family, rows.numpy())),
        ("integer rows", "params: expected floating-point rows", ValueError, lambda: Local(family, rows.long())),
        ("no family", kind, TypeError, lambda: Local(None, rows)),
        (
            "rows of other data",
            "expected one row a datapoint, 6; got 5",
            ValueError,
            lambda: _elbo(Local(family, rows[:5])),
        ),
        ("NaN in the rows", "'table' holds NaN", ValueError, lambda: _elbo(Local(family, rows * NAN))),
        ("float32 rows", "expected torch.float64", ValueError, lambda: _elbo(Local(family, rows.float()))),
        (
            "a row that is not there",
            "index 9 is out of bounds",
            IndexError,
            lambda: Local(family, rows).rows(torch.tensor([9])),
        ),
    ):
        yield Case(of="inference.Local", what=what, call=call, error=error, kind=exception)


class _Pair(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x, x


def _elbo(guide: Any, **options: Any) -> Any:
    return lib.elbo(make_vae().model, guide, clean_data(), num_draws=4, seed=0, **options).value


def _losses() -> Iterator[Case]:
    for name in LOSSES:
        for value in (*NO_COUNTS, None):
            call = lambda name=name, value=value: getattr(lib, name)(value)  # noqa: E731
            yield Case(of=f"inference.{name}", what=f"k={value!r}", call=call, error=COUNT)
        if name != "Loss":
            call = lambda name=name: _engine("fit_svi", loss=getattr(lib, name)(1), seed=0).elbo  # noqa: E731
            yield Case(of=f"inference.{name}", what="k=1", call=call)
    for value in (1, 1.0, INF, True, *NO_NUMBERS):
        call = lambda value=value: lib.Renyi(4, alpha=value)  # noqa: E731
        yield Case(of="inference.Renyi", what=f"alpha={value!r}", call=call, error="alpha: expected a finite number")
    for value in (-0.1, 1.1, *NO_NUMBERS):
        call = lambda value=value: lib.WakeSleep(4, insomnia=value)  # noqa: E731
        yield Case(of="inference.WakeSleep", what=f"insomnia={value!r}", call=call, error="insomnia: expected a number")
    log_w = torch.linspace(-3, 2, 5, dtype=torch.float64).reshape(5, 1, 1)
    yield Case(
        of="inference.IWAE", what="k=1 is the ELBO", call=lambda: IWAE(1).bound(log_w), clean=lambda: log_w[:, 0]
    )
    yield Case(
        of="inference.Renyi",
        what="k=1 is the ELBO",
        call=lambda: lib.Renyi(1, alpha=0.3).bound(log_w),
        clean=lambda: log_w[:, 0],
        tolerance=1e-12,
    )
    yield Case(
        of="inference.Objective",
        what="no forward",
        call=lambda: lib.Objective()(clean_data()),
        error="missing the required .forward. function",
        kind=NotImplementedError,
    )


def _settings() -> Iterator[Case]:
    def fit(**options: Any) -> Any:
        return _engine(
            "fit_svi", training=Training(**{"epochs": 1, "batch_size": 4, "compile": False, **options}), seed=0
        ).elbo

    of = "inference.Training"
    missing = "device: expected one that this machine has"
    for what, error, kind, call in (
        ("a typing error", "unexpected keyword argument 'epoch'", TypeError, lambda: Training(epoch=3)),
        ("by position", "takes 1 positional argument", TypeError, lambda: Training(3)),
        (
            "a name for the optimizer",
            "optimizer: expected what makes one.*got 'adam'",
            TypeError,
            lambda: Training(optimizer="adam"),
        ),
        (
            "a class for the optimizer",
            "optimizer: expected .*got the class Adam",
            TypeError,
            lambda: Training(optimizer=Adam),
        ),
        (
            "a class for the schedule",
            "schedule: expected .*got the class Cosine",
            TypeError,
            lambda: Training(schedule=lib.Cosine),
        ),
        ("None for the schedule", "schedule: expected", TypeError, lambda: Training(schedule=None)),
        ("a function for callbacks", "callbacks: expected a list", TypeError, lambda: Training(callbacks=print)),
        ("names for callbacks", "callbacks: expected a list", TypeError, lambda: Training(callbacks=["log"])),
        ("an unknown device", missing, ValueError, lambda: fit(device="gpu")),
        ("a number for the device", missing, ValueError, lambda: fit(device=3)),
        ("an object for the device", missing, ValueError, lambda: fit(device=[])),
        ("device meta", "device: expected one that holds values", ValueError, lambda: fit(device="meta")),
        ("patience without held-out data", "patience: .*got validation=None", ValueError, lambda: fit(patience=1)),
        (
            "more shards than datapoints",
            "shards: expected at most one a datapoint",
            ValueError,
            lambda: fit(shards=7, batch_size=7),
        ),
        ("a batch that shards do not divide", "batch_size: expected a multiple", ValueError, lambda: fit(shards=3)),
    ):
        yield Case(of=of, what=what, call=call, error=error, kind=kind)
    if not torch.cuda.is_available():
        yield Case(of=of, what="device cuda without one", call=lambda: fit(device="cuda"), error=missing)
    yield Case(of=of, what="B > N", call=lambda: fit(batch_size=128), clean=lambda: fit(batch_size=NUM_DATA))
    yield Case(of=of, what="B = 1", call=lambda: fit(batch_size=1))
    for name, value in (("Constant", 3), ("Cosine", 3), ("LinearSchedule", 3)):
        call = lambda name=name, value=value: getattr(lib, name)(value)  # noqa: E731
        yield Case(
            of=f"inference.{name}", what="an argument", call=call, error="takes 1 positional argument", kind=TypeError
        )
    for name in ("LinearSchedule", "GeometricSchedule", "SigmoidalSchedule"):
        call = lambda name=name: getattr(lib, name)()(1)  # noqa: E731
        yield Case(of=f"inference.{name}", what="one temperature", call=call, clean=lambda: torch.tensor([0.0, 1.0]))
    for what, options in (("a name for the schedule", "linear"), ("a class for the schedule", lib.LinearSchedule)):
        call = lambda options=options: lib.Annealing(schedule=options)  # noqa: E731
        yield Case(
            of="inference.Annealing", what=what, call=call, error="schedule: expected one such as", kind=TypeError
        )
    yield Case(
        of="inference.Annealing",
        what="a number for the transition",
        call=lambda: lib.Annealing(hmc=5),
        error="hmc: expected an object of class HMC; got 5",
        kind=TypeError,
    )
    yield from _callbacks()


def _callbacks() -> Iterator[Case]:
    path = "expected|path|PathLike"
    for name, call, error, kind in (
        ("Checkpoints", lambda: lib.Checkpoints("folder", every=0), COUNT, ValueError),
        ("Checkpoints", lambda: lib.Checkpoints("folder", keep=1.5), COUNT, ValueError),
        ("Checkpoints", lambda: lib.Checkpoints(None), path, TypeError),
        ("EarlyStopping", lambda: lib.EarlyStopping(0), COUNT, ValueError),
        ("EarlyStopping", lambda: lib.EarlyStopping(3, metric="loss"), "metric: expected 'elbo'", ValueError),
        ("EarlyStopping", lambda: lib.EarlyStopping(3, min_gain="a"), "min_gain: expected", ValueError),
        ("EarlyStopping", lambda: lib.EarlyStopping(3, min_gain=NAN), "min_gain: expected", ValueError),
        (
            "MetricsFile",
            lambda: lib.MetricsFile("metrics.txt"),
            "expected a file that ends in .jsonl or .csv",
            ValueError,
        ),
        ("MetricsFile", lambda: lib.MetricsFile(None), path, TypeError),
        ("TensorBoard", lambda: lib.TensorBoard(None), path, (TypeError, ImportError)),
        ("Resume", lambda: lib.Resume(None), "folder: expected a path; got None", TypeError),
        ("Resume", lambda: lib.Resume("folder", every=-1), "every: expected seconds", ValueError),
        ("Resume", lambda: lib.Resume("folder", every="1"), "every: expected seconds", ValueError),
    ):
        yield Case(of=f"inference.{name}", what=f"case {error[:30]}", call=call, error=error, kind=kind)  # type: ignore[arg-type]


def _weights() -> Iterator[Case]:
    torch.manual_seed(0)
    log_w = torch.randn(40, 3, dtype=torch.float64)
    for name, least in (("ess", 1), ("pareto_k", 25)):
        function, of = getattr(lib, name), f"inference.{name}"
        for what, value, error, kind in (
            ("a list", log_w.tolist(), "log_w: expected a tensor", TypeError),
            ("an array", log_w.numpy(), "log_w: expected a tensor", TypeError),
            ("one datapoint without its dimension", log_w[:, 0], r"log_w: expected real numbers \(S, N\)", ValueError),
            ("three dimensions", log_w[..., None], r"log_w: expected real numbers \(S, N\)", ValueError),
            ("a number", torch.tensor(1.0), r"log_w: expected real numbers \(S, N\)", ValueError),
            ("complex numbers", log_w + 0j, r"log_w: expected real numbers", ValueError),
            ("no draw", log_w[:0], "log_w: expected at least", ValueError),
            ("too few draws", log_w[: least - 1], "log_w: expected at least", ValueError),
        ):
            yield Case(of=of, what=what, call=lambda f=function, value=value: f(value), error=error, kind=kind)
        for what, value in (
            ("shifted by 1e12", log_w + 2.0**40),
            ("shifted down by 1e12", log_w - 2.0**40),
            ("not contiguous", log_w.T.contiguous().T),
            ("asks for a gradient", log_w.clone().requires_grad_()),
        ):
            call = lambda f=function, value=value: f(value)  # noqa: E731
            yield Case(
                of=of,
                what=what,
                call=call,
                clean=lambda f=function: f(log_w),
                tolerance=1e-2 if "1e12" in what else 1e-12,
            )
        undefined = torch.full((3,), NAN)
        for value in (NAN, -INF, INF):
            call = lambda f=function, value=value: f(torch.full((40, 3), value))  # noqa: E731
            yield Case(of=of, what=f"all {value}", call=call, clean=lambda undefined=undefined: undefined)
    same = torch.full((30, 2), 1e30)
    yield Case(
        of="inference.ess",
        what="all 1e30",
        call=lambda: lib.ess(same),
        clean=lambda: torch.full((2,), 30.0),
        tolerance=1e-12,
    )
    yield Case(of="inference.ess", what="one draw", call=lambda: lib.ess(log_w[:1]), clean=lambda: torch.ones(3))
    yield Case(
        of="inference.pareto_k", what="all equal", call=lambda: lib.pareto_k(same), clean=lambda: torch.full((2,), NAN)
    )


def _evidence(value: Any, se: Any = None, **options: Any) -> Any:
    return lib.Evidence(value=value, se=torch.zeros_like(value) if se is None else se, method="m", **options)


def _records() -> Iterator[Case]:
    v = torch.zeros(3)
    of = "inference.Evidence"
    for what, error, kind, call in (
        ("errors of other data", r"one shape \(N,\); got \(3,\) and \(2,\)", ValueError, lambda: _evidence(v, v[:2])),
        ("a column", r"one shape \(N,\); got \(3, 1\)", ValueError, lambda: _evidence(v[:, None])),
        ("lists", "as tensors .*got list", TypeError, lambda: lib.Evidence(value=[0.0], se=[0.0], method="m")),
    ):
        yield Case(of=of, what=what, call=call, error=error, kind=kind)
    for what, value in (("one datapoint", v[:1]), ("NaN", v * NAN)):
        yield Case(of=of, what=what, call=lambda value=value: str(_evidence(value)))

    def gaps(num_data: int = NUM_DATA) -> Any:
        vae = make_vae()
        return lib.measure_gaps(vae.model, vae.guide, clean_data()[:num_data], **GAPS, seed=0)

    for what, call, error, kind in (
        (
            "inference.generalization",
            lambda: lib.generalization(gaps(), 3),
            "test: expected an object of class Gaps",
            TypeError,
        ),
        (
            "inference.generalization",
            lambda: lib.generalization(v, v),
            "training: expected an object of class Gaps",
            TypeError,
        ),
        ("inference.by_one_estimator", lambda: lib.by_one_estimator(), "expected the gaps of at least one", ValueError),
        (
            "inference.by_one_estimator",
            lambda: lib.by_one_estimator([gaps()]),
            "class Gaps; got .*list. Pass the",
            TypeError,
        ),
        (
            "inference.by_one_estimator",
            lambda: lib.by_one_estimator(_evidence(v)),
            "class Gaps; got .*Evidence",
            TypeError,
        ),
        ("inference.to_elpd", lambda: lib.to_elpd(gaps()), "expected an Evidence", ValueError),
        (
            "inference.to_elpd",
            lambda: lib.to_elpd(_evidence(v * NAN)),
            "expected finite values; got nan at",
            ValueError,
        ),
        ("inference.to_elpd", lambda: lib.to_elpd(_evidence(v[:1])), "expected at least 2 datapoints", ValueError),
        ("inference.to_elpd", lambda: lib.to_elpd(_evidence(v), obs_ids=[1]), "obs_ids: expected", ValueError),
        (
            "inference.save_datatree",
            lambda: lib.save_datatree(None, "a.nc"),
            "tree: expected an object of class DataTree",
            TypeError,
        ),
    ):
        yield Case(of=what, what=f"case {error[:40]}", call=call, error=error, kind=kind)
    yield Case(of="inference.Gaps", what="one datapoint", call=lambda: str(gaps(1)))
    one = {"seed": 0}
    for name, call in (
        ("Generalization", lambda: str(lib.generalization(gaps(1), gaps(1)))),
        ("SimulatedGaps", lambda: str(_one("simulated_gaps", num_simulations=1, **one))),
        ("Surgery", lambda: str(_one("elbo_surgery", num_draws=4, **one))),
        ("Calibration", lambda: str(_one("sbc", num_simulations=10, num_draws=1, **one))),
        ("PosteriorDraws", lambda: str(_one("sample_posterior", **one))),
        ("Refined", lambda: str(_one("refine", **one))),
        ("Fit", lambda: str(_one("fit_svi", **one))),
        ("Bidirectional", lambda: str(_one("bdmc", num_data=1, num_draws=50, **one))),
        ("Tracked", lambda: str(lib.Tracked(1, gaps(1), None))),
        ("Note", lambda: str(lib.Note(text="{} of it"))),
        ("Stopped", lambda: str(lib.Stopped(2, "stopped"))),
    ):
        yield Case(of=f"inference.{name}", what="printed, of one datapoint", call=call)


def _one(name: str, **options: Any) -> Any:
    """The record of a single datapoint."""
    vae, x = make_vae(), clean_data()[:1]
    p, q = vae.model, vae.guide
    chains = {"num_superchains": 2, "chains_per_superchain": 2, "num_warmup": 4, "num_draws": 4}
    given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "simulated_gaps": ((p, q, x), GAPS),
        "sample_posterior": ((p, x), chains),
        "refine": ((p, MeanField(2), x), {"num_draws": 4, "search": SEARCH}),
        "fit_svi": ((p, q, x), {"training": TRAINING}),
        "bdmc": ((p, x), {"annealing": PATH, "start": q}),
    }
    arguments, usual = given.get(name, ((p, q, x), {}))
    return getattr(lib, name)(*arguments, **{**usual, **options})


def _row_guide(x: Tensor) -> None:
    loc = pyro.param("loc", lambda: torch.zeros(len(x), 2))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def _programs() -> Iterator[Case]:
    def fit(guide: Callable[[Any], Any], batch_size: int) -> Callable[[], Any]:
        def call() -> Any:
            vae = make_vae()
            training = Training(epochs=1, batch_size=batch_size, compile=False)
            return lib.fit_svi(vae.model, guide(vae), clean_data(), training=training, seed=0).elbo

        return call

    serves = "guide: expected one that serves any minibatch; of .*fitted by fit_em"
    for what, guide in (
        ("AutoNormal", lambda vae: AutoNormal(vae.model)),
        ("AutoDelta", lambda vae: AutoDelta(vae.model)),
        ("AutoMultivariateNormal", lambda vae: AutoMultivariateNormal(vae.model)),
        ("a row a datapoint by hand", lambda vae: _row_guide),
        ("Local", lambda vae: Local(MeanField(2), nn.Parameter(torch.zeros(6, 4)))),
    ):
        for size in (4, 6, 128):
            if (what, size) == ("Local", 4):
                continue  # It says itself how many datapoints it has rows for.
            yield Case(of="inference.fit_svi", what=f"{what}, B={size}", call=fit(guide, size), error=serves)
    x, z = clean_data(), torch.zeros(3, 6, 2, dtype=torch.float64)
    for what, value, error in (
        ("z without draws", z[0], r"z: expected a tensor of shape \(S, 6, D\)"),
        ("z of other datapoints", z[:, :5], r"z: expected a tensor of shape \(S, 6, D\)"),
        ("z of another size", torch.zeros(3, 6, 3), r"z: expected shape \(..., 2\); got"),
        ("no particle", z[:0], "z: expected a tensor of shape"),
        ("z a list", z.tolist(), "z: expected a tensor .*got list"),
        ("float32 z", z.float(), "z: expected torch.float64 like the model's parameters; got torch.float32"),
        ("integer z", z.long(), "z: expected torch.float64 like the model's parameters; got torch.int64"),
    ):
        call = lambda value=value: lib.log_joint(make_vae().model, x, value)  # noqa: E731
        yield Case(of="inference.log_joint", what=what, call=call, error=error)
    yield Case(
        of="inference.log_joint",
        what="S = 1",
        call=lambda: lib.log_joint(make_vae().model, x, z[:1]),
        clean=lambda: lib.log_joint(make_vae().model, x, z)[:1],
    )
    yield Case(
        of="inference.log_joint",
        what="z not contiguous",
        call=lambda: lib.log_joint(make_vae().model, x, torch.zeros(6, 3, 2, dtype=torch.float64).transpose(0, 1)),
        clean=lambda: lib.log_joint(make_vae().model, x, z),
    )
    yield Case(
        of="inference.log_weights", what="S = 1", call=lambda: lib.log_weights(make_vae().model, make_vae().guide, x)
    )
    for name, call, error, kind in (
        ("conditioned", lambda: lib.conditioned(None, {}), "program: expected a Pyro function; got None", TypeError),
        (
            "conditioned",
            lambda: lib.conditioned(make_vae().model, [1]),
            "draw: expected the value of each site",
            TypeError,
        ),
        (
            "draw_globals",
            lambda: lib.draw_globals(make_vae().model, make_vae().guide, x, num_draws=2),
            "outside the data plate",
            ValueError,
        ),
        (
            "TermTracker",
            lambda: lib.TermTracker(make_vae().model, make_vae().guide, x),
            "data: expected datapoints by name",
            TypeError,
        ),
        (
            "fit_em",
            lambda: lib.fit_em(make_vae().model, MeanField(3), x, training=TRAINING),
            "expected num_latents = 2",
            ValueError,
        ),
        ("refine", lambda: lib.refine(make_vae().model, MeanField(3), x), "expected num_latents = 2", ValueError),
        (
            "ais",
            lambda: lib.ais(make_vae().model, x, start=MeanField(3), annealing=PATH),
            "expected num_latents = 2",
            ValueError,
        ),
        (
            "quadrature",
            lambda: lib.quadrature(make_vae(4, 3).model, x),
            "needs 1 or 2 latent dimensions; got 3",
            ValueError,
        ),
        (
            "measure_gaps",
            lambda: lib.measure_gaps(make_vae().model, make_vae().guide, x, MeanField(2)),
            "takes 3 positional arg",
            TypeError,
        ),
        ("ais", lambda: lib.ais(make_vae().model, make_vae().guide, x), "takes 2 positional arg", TypeError),
    ):
        yield Case(of=f"inference.{name}", what=f"case {error[:40]}", call=call, error=error, kind=kind)
    for wrong in ("mean-field", MeanField, make_vae().guide, None):
        for name in ("fit_em", "refine"):
            call = lambda name=name, wrong=wrong: getattr(lib, name)(make_vae().model, wrong, x)  # noqa: E731
            error = "family: expected an object of class Family; got"
            yield Case(of=f"inference.{name}", what=f"family={_show(wrong)}", call=call, error=error, kind=TypeError)
    yield from _one_dimension()


def _one_dimension() -> Iterator[Case]:
    """One latent dimension, with the closed form."""
    from pyro_vae import LinearGaussian

    exact = LinearGaussian(torch.ones(3, 1, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 1.0)
    x = clean_data(5, 3)
    truth = lambda: exact.log_evidence(x).detach()  # noqa: E731
    family = FullCovariance(1)
    guide = lambda: Local(family, family.params_from(exact.posterior(x)).detach())  # noqa: E731
    for name, call, tolerance in (
        ("elbo", lambda: lib.elbo(exact.model, guide(), x, num_draws=4, seed=0).value, 1e-6),
        ("quadrature", lambda: lib.quadrature(exact.model, x).value, 1e-4),
        ("iwae", lambda: lib.iwae(exact.model, guide(), x, num_draws=50, proposal=None, seed=0).value, 1e-6),
        ("measure_gaps", lambda: lib.measure_gaps(exact.model, guide(), x, **GAPS, seed=0).elbo_amortized, 1e-6),
        ("ais", lambda: lib.ais(exact.model, x, start=guide(), annealing=PATH, seed=0).value, 1e-6),
    ):
        yield Case(of=f"inference.{name}", what="one latent dimension", call=call, clean=truth, tolerance=tolerance)
