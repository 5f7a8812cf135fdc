"""Bad input to what reads a model, a guide and data: every engine and every measurement, with every kind of data."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from bad_input import Case
from torch import Tensor, nn

from inference import (
    Annealing,
    GapTracker,
    MeanField,
    Search,
    TermTracker,
    Training,
    ais,
    bdmc,
    elbo,
    elbo_surgery,
    fit_em,
    fit_mcem,
    fit_svi,
    iwae,
    log_joint,
    log_weights,
    measure_gaps,
    quadrature,
    refine,
    sample_posterior,
    sbc,
    simulate,
    simulated_gaps,
    to_datatree,
)
from inference.training import LoopState
from pyro_vae import VAE
from pyro_vae.likelihoods import Gaussian
from pyro_vae.priors import StandardNormal

__all__ = [
    "GAPS",
    "NUM_DATA",
    "NUM_LATENTS",
    "NUM_VALUES",
    "PATH",
    "SEARCH",
    "TRAINING",
    "cases",
    "clean_data",
    "make_vae",
]

NUM_VALUES, NUM_LATENTS, NUM_DATA = 4, 2, 6
SEARCH = Search(first_round=4, max_rounds=1, num_judge_draws=64, num_select_draws=4, compile=False)
TRAINING = Training(epochs=1, batch_size=4, local_steps=1, compile=False)
PATH = Annealing(num_temperatures=2, num_chains=2, num_pilot_chains=2)
GAPS: dict[str, Any] = {"num_draws": 4, "num_evidence_draws": 50, "annealing": None, "search": SEARCH}


def make_vae(num_values: int = NUM_VALUES, num_latents: int = NUM_LATENTS) -> VAE:
    """A small model, always with the same weights."""
    torch.manual_seed(1)
    family = MeanField(num_latents)
    return VAE(
        prior=StandardNormal(num_latents),
        likelihood=Gaussian(scale=0.5),
        decoder=nn.Linear(num_latents, num_values),
        family=family,
        encoder=nn.Linear(num_values, family.num_params),
    )


def clean_data(num_data: int = NUM_DATA, num_values: int = NUM_VALUES) -> Tensor:
    """Datapoints as they should come."""
    return torch.randn(num_data, num_values, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def _after_an_epoch(tracker: Any) -> Any:
    tracker(LoopState({"weight": torch.zeros(1)}, None, epoch=1))
    return tracker


def _tracked(data: Any, p: Any, q: Any) -> Any:
    return _after_an_epoch(GapTracker(p, q, data, every=1, **GAPS)).history[0].gaps.elbo_amortized


def _terms(data: Any, p: Any, q: Any) -> Any:
    return _after_an_epoch(TermTracker(p, q, {"training": data})).kl


def _datatree(data: Any, p: Any, q: Any) -> Any:
    return to_datatree(p, q, data, num_draws=2, num_chains=2, seed=0)["posterior"]["z"].values


def _refined(data: Any, p: Any, q: Any) -> Any:
    return refine(p, MeanField(NUM_LATENTS), data, init=q, num_draws=4, search=SEARCH, seed=0).elbo


def _chains(data: Any, p: Any, q: Any) -> Any:
    counts: dict[str, Any] = {"num_superchains": 2, "chains_per_superchain": 2, "num_warmup": 4, "num_draws": 4}
    return sample_posterior(p, data, init=q, **counts, seed=0).z


Engine = Callable[[Any, Any, Any], Any]

# Each on (data, model, guide).
ENGINES: dict[str, Engine] = {
    "fit_svi": lambda data, p, q: fit_svi(p, q, data, training=TRAINING, seed=0).elbo,
    "fit_em": lambda data, p, q: fit_em(p, MeanField(NUM_LATENTS), data, init=q, training=TRAINING, seed=0).elbo,
    "fit_mcem": lambda data, p, q: (
        fit_mcem(p, data, init=q, num_chains=2, burn_in=2, training=TRAINING, seed=0).log_joint
    ),
    "refine": _refined,
    "elbo": lambda data, p, q: elbo(p, q, data, num_draws=4, seed=0).value,
    "iwae": lambda data, p, q: iwae(p, q, data, num_draws=50, search=SEARCH, seed=0).value,
    "ais": lambda data, p, q: ais(p, data, start=q, annealing=PATH, seed=0).value,
    "bdmc": lambda data, p, q: bdmc(p, data, start=q, num_data=4, num_draws=50, annealing=PATH, seed=0).real.elbo.value,
    "quadrature": lambda data, p, q: quadrature(p, data, tol=0.1).value,
    "measure_gaps": lambda data, p, q: measure_gaps(p, q, data, **GAPS, seed=0).elbo_amortized,
    "simulated_gaps": lambda data, p, q: simulated_gaps(p, q, data, num_simulations=4, **GAPS, seed=0).real.elbo_local,
    "elbo_surgery": lambda data, p, q: elbo_surgery(p, q, data, num_draws=4, seed=0).elbo,
    "sbc": lambda data, p, q: sbc(p, q, data, num_simulations=20, num_draws=4, seed=0).p_values,
    "sample_posterior": _chains,
    "simulate": lambda data, p, q: simulate(p, data, num_data=4, seed=0),
    "to_datatree": _datatree,
    "log_joint": lambda data, p, q: log_joint(p, data, torch.zeros(3, NUM_DATA, NUM_LATENTS)),
    "log_weights": lambda data, p, q: log_weights(p, q, data, num_particles=3),
    "GapTracker": _tracked,
    "TermTracker": _terms,
}
# No guide is asked.
WITHOUT_GUIDE = {"quadrature", "simulate", "log_joint"}
# They take a batch as it is, and no data set that is read by index.
TAKE_A_BATCH = {"log_joint", "log_weights"}
# What each datapoint gets depends on its own index alone.
BY_DATAPOINT = {"refine", "elbo", "iwae", "ais", "quadrature", "measure_gaps", "GapTracker"}


def _with(value: float) -> Tensor:
    x = clean_data()
    x[1, 2] = value
    return x


NUMBERS = "expected torch.float32, torch.float64 or integers; got torch"
NOT_FINITE = r"datapoint 1 holds NaN or infinity|got x\[1, 2\] = "
LIKE_THE_MODEL = r"expected torch.float64 like the model's parameters; got torch.{}. Pass .double\(\)"

# What is odd about the data, the data, the type of the error, what it says.
WRONG: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("None for data", lambda: None, TypeError, "expected a tensor .*got NoneType"),
    ("a name for data", lambda: "digits", TypeError, "expected a tensor .*got str"),
    ("nested lists", lambda: clean_data().tolist(), TypeError, "expected a tensor .*got list"),
    ("(x, label) pairs", lambda: [(row, 0) for row in clean_data()], TypeError, "expected a tensor .*got list"),
    (
        "a pandas frame",
        lambda: pd.DataFrame(clean_data().numpy()),
        TypeError,
        "expected a tensor .*got (a pandas )?DataFra",
    ),
    (
        "a frame as wide as long",
        lambda: pd.DataFrame(np.eye(4)),
        TypeError,
        "expected a tensor .*got (a pandas )?DataFra",
    ),
    ("a single number", lambda: torch.tensor(1.0), ValueError, r"expected shape .*got (a single number|\(\))"),
    ("no datapoint", lambda: clean_data()[:0], ValueError, "at least one.*got"),
    (
        "one datapoint without its batch",
        lambda: clean_data()[0],
        ValueError,
        r"expected .*\(B, P\).*; got (shape )?\(\d+,\)",
    ),
    (
        "images that are not flat",
        lambda: clean_data()[:, None],
        ValueError,
        r"expected .*\(B, P\).*got (shape )?\(\d+, 1, 4\)",
    ),
    (
        "no value a datapoint",
        lambda: clean_data()[:, :0],
        ValueError,
        r"at least one value a datapoint; got shape \(6, 0\)",
    ),
    ("NaN", lambda: _with(float("nan")), ValueError, NOT_FINITE),
    ("infinity", lambda: _with(float("inf")), ValueError, NOT_FINITE),
    (
        "too wide",
        lambda: torch.randn(NUM_DATA, 7),
        ValueError,
        r"\(\d+, 7\).*Expected|expected 7 x 1 = 7 outputs.*got 4",
    ),
    (
        "too narrow",
        lambda: torch.randn(NUM_DATA, 3),
        ValueError,
        r"\(\d+, 3\).*Expected|expected 3 x 1 = 3 outputs.*got 4",
    ),
    ("complex numbers", lambda: clean_data() + 0j, ValueError, NUMBERS),
    ("bfloat16", lambda: clean_data().bfloat16(), ValueError, NUMBERS),
    ("float16", lambda: clean_data().half(), ValueError, NUMBERS),
    ("truth values", lambda: clean_data() > 0, ValueError, NUMBERS),
    ("device meta", lambda: clean_data().to("meta"), ValueError, "expected values; got a tensor on device 'meta'"),
    (
        "a sparse tensor",
        lambda: clean_data().to_sparse(),
        ValueError,
        "expected a dense tensor; got layout torch.sparse_coo",
    ),
]
ARRAYS: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("an array of strings", lambda: np.full((6, 4), "a"), ValueError, "expected numbers; got an array of type <U1"),
    (
        "an array of objects",
        lambda: np.full((6, 4), 1.0, dtype=object),
        ValueError,
        "expected numbers; got an array of type obj",
    ),
    (
        "a big-endian array",
        lambda: clean_data().numpy().astype(">f8"),
        ValueError,
        "expected numbers; got an array of type >f8",
    ),
    ("a mapping by number", lambda: _ByNumber(), TypeError, r"data\[index\] with index a tensor"),
    ("a set of (x, label) pairs", lambda: _Pairs(), ValueError, "got a tuple. Pass the x of"),
    ("a set of too few rows", lambda: _Short(), ValueError, r"expected \d+ vectors"),
]


class _ByNumber:
    """Datapoints that are asked for one by one."""

    def __len__(self) -> int:
        return NUM_DATA

    def __getitem__(self, index: Any) -> Tensor:
        return {n: row for n, row in enumerate(clean_data())}[index]


class _Pairs(_ByNumber):
    def __getitem__(self, index: Any) -> Any:
        return clean_data()[index], index


class _Short(_ByNumber):
    def __getitem__(self, index: Any) -> Any:
        return clean_data()[index][:0]


class _View(_ByNumber):
    """Datapoints that are computed when they are read."""

    def __getitem__(self, index: Any) -> Any:
        return clean_data()[index]


def _spread() -> Tensor:
    wide = torch.zeros(2 * NUM_DATA, 2 * NUM_VALUES)
    wide[::2, ::2] = clean_data()
    return wide[::2, ::2]


def _read_only() -> np.ndarray:
    x = clean_data().numpy()
    x.flags.writeable = False
    return x


# What is odd about data that are right all the same, for whoever takes a batch too.
RIGHT: list[tuple[str, Callable[[], Any]]] = [
    ("not contiguous", _spread),
    ("columns first", lambda: clean_data().T.contiguous().T),
    ("asks for a gradient", lambda: clean_data().requires_grad_()),
    ("a parameter", lambda: nn.Parameter(clean_data())),
]
RIGHT_TO_READ: list[tuple[str, Callable[[], Any]]] = [
    ("an array", lambda: clean_data().numpy()),
    ("an array read backwards", lambda: clean_data().flip(0).numpy()[::-1]),
    ("an array that is read-only", _read_only),
    ("a view with len() and [index]", _View),
]


def _call(engine: Engine, data: Callable[[], Any], *, model: Any = None, guide: Any = None) -> Callable[[], Any]:
    """The call on data and programs made anew."""

    def call() -> Any:
        vae = make_vae()
        p = model(vae) if model is not None else vae.model
        q = guide(vae) if guide is not None else vae.guide
        return engine(data(), p, q)

    return call


def cases() -> Iterator[Case]:
    """Every engine with every kind of data and programs."""
    for name, engine in ENGINES.items():
        of = f"inference.{name}"
        for what, data, kind, error in WRONG + ([] if name in TAKE_A_BATCH else ARRAYS):
            yield Case(of=of, what=what, call=_call(engine, data), error=error, kind=kind)
        # It searches simulated data too, and its checks of data are everyone's.
        right = RIGHT[:1] if name == "bdmc" else RIGHT + ([] if name in TAKE_A_BATCH else RIGHT_TO_READ)
        for what, data in right:
            yield Case(of=of, what=what, call=_call(engine, data), clean=_call(engine, clean_data), tolerance=1e-12)
        yield from _types(name, engine)
        if name in BY_DATAPOINT:
            yield Case(
                of=of,
                what="one datapoint",
                call=_call(engine, lambda: clean_data()[:1]),
                clean=lambda engine=engine: _call(engine, clean_data)()[:1],
                tolerance=1e-9,
            )
        elif name != "log_joint":
            yield Case(of=of, what="one datapoint", call=_call(engine, lambda: clean_data()[:1]))
        for scale in (1e30, 1e-30):
            yield Case(
                of=of, what=f"data times {scale:g}", call=_call(engine, lambda scale=scale: clean_data() * scale)
            )
        yield from _programs(name, engine)


def _types(name: str, engine: Engine) -> Iterator[Case]:
    """Integers and the other floating-point type: refused where a network would, else the same numbers."""
    of = f"inference.{name}"

    def counts() -> Tensor:
        return (4 * clean_data()).round().abs()

    for dtype in (torch.uint8, torch.int16, torch.int64):
        kind = str(dtype).removeprefix("torch.")
        data = lambda dtype=dtype: counts().to(dtype)  # noqa: E731
        if name in WITHOUT_GUIDE:
            clean = _call(engine, counts)
            yield Case(of=of, what=f"{kind} data", call=_call(engine, data), clean=clean, tolerance=1e-12)
        else:
            yield Case(of=of, what=f"{kind} data", call=_call(engine, data), error=LIKE_THE_MODEL.format(kind))
    single = lambda: clean_data().float()  # noqa: E731
    if name in ("simulate", "log_joint"):
        rounded = _call(engine, lambda: clean_data().float().double())
        yield Case(of=of, what="float32 data", call=_call(engine, single), clean=rounded, tolerance=1e-4)
    else:
        yield Case(of=of, what="float32 data", call=_call(engine, single), error=LIKE_THE_MODEL.format("float32"))
    yield Case(
        of=of,
        what="float64 data on a float32 model",
        call=_call(engine, clean_data, model=lambda vae: vae.float().model),
        **(
            {}
            if name == "simulate"
            else {"error": "expected torch.float32 like the model's parameters; got torch.float64. Pass .float()"}
        ),
    )


def _programs(name: str, engine: Engine) -> Iterator[Case]:
    """Models and guides that are none."""
    of = f"inference.{name}"
    functions = "expected Pyro functions of x; got "
    for what, model, kind, error in (
        ("None for the model", lambda vae: None, TypeError, f"{functions}NoneType"),
        (
            "a VAE for its model",
            lambda vae: vae,
            TypeError,
            f"{functions}VAE, a module without forward. Pass its model",
        ),
        ("a decoder for the model", lambda vae: vae.decoder, ValueError, "[Ee]xpected"),
        ("the guide for the model", lambda vae: vae.guide, ValueError, "observed site|[Ee]xpected"),
    ):
        yield Case(of=of, what=what, call=_call(engine, clean_data, model=model), error=error, kind=kind)
    if name in WITHOUT_GUIDE:
        return
    for what, guide, kind, error in (
        ("an encoder for the guide", lambda vae: vae.encoder, ValueError, "expected"),
        ("the model for the guide", lambda vae: vae.model, ValueError, "expected"),
        ("a family for the guide", lambda vae: MeanField(NUM_LATENTS), ValueError, "expected"),
    ):
        if name in ("ais", "bdmc") and what == "a family for the guide":
            continue  # It may start from one.
        yield Case(of=of, what=what, call=_call(engine, clean_data, guide=guide), error=error, kind=kind)
    if name not in ("fit_em", "fit_mcem", "refine", "ais", "bdmc", "sample_posterior"):
        yield Case(
            of=of,
            what="None for the guide",
            call=_call(engine, clean_data, guide=lambda vae: None),
            error=f"{functions}NoneType. A model without an encoder",
            kind=TypeError,
        )
    if name in ("log_weights", "TermTracker"):
        return  # Numbers as they are, NaN among them.
    for what, spoil in (("NaN in the encoder", "encoder"), ("NaN in the decoder", "decoder")):
        yield Case(
            of=of,
            what=what,
            call=_call(engine, clean_data, model=lambda vae, spoil=spoil: _spoilt(vae, spoil).model),
            error="NaN|not finite|finite",
            kind=(ValueError, FloatingPointError),  # type: ignore[arg-type]
        )


def _spoilt(vae: VAE, part: str) -> VAE:
    with torch.no_grad():
        getattr(vae, part).weight[0, 0] = float("nan")
    return vae
