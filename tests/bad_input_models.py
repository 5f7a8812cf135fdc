"""Bad input to the public names of `pyro_vae`: networks, models, data sets, comparisons, run folders."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from bad_input import Case
from bad_input_engines import TRAINING, clean_data, make_vae
from torch import Tensor, nn

import pyro_vae as lib
from inference import Evidence, MeanField
from pyro_vae import MLP, PCA, VAE, Autoencoder, ConvDecoder, ConvEncoder, Linear, LinearGaussian, load
from pyro_vae.likelihoods import Gaussian
from pyro_vae.priors import StandardNormal

__all__ = ["cases"]

NAN = math.nan
NO_SIZES = (0, -1, 1.5, True, "a", None)
BOTH = (ValueError, TypeError)


def _counts() -> Tensor:
    return (4 * clean_data()).round().abs()


def _autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(Linear(4, 2), Linear(2, 4))


def _exact(scale: float = 1.0) -> LinearGaussian:
    weight = torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    return LinearGaussian(weight, torch.zeros(4, dtype=torch.float64), scale)


def _pca(x: Any) -> Any:
    pca = PCA.fit(x, 2)
    return pca.components.abs(), pca.mean


def _fitted(x: Any) -> Any:
    return LinearGaussian.fit(x, 2).double().log_evidence(clean_data())


def _fitted_by_em(x: Any) -> Any:
    return LinearGaussian.fit_em(x, 2, max_steps=3)[0].double().log_evidence(clean_data())


# What reads x, and whether it takes a single datapoint, NaN, integers, float32.
READERS: list[tuple[str, str, Callable[[Any], Any], bool, bool, bool, bool]] = [
    ("PCA", "fit", _pca, False, False, True, True),
    ("PCA", "encode", lambda x: PCA(torch.eye(4)[:2], torch.zeros(4)).encode(x), True, True, True, True),
    ("PCA", "reconstruct", lambda x: PCA(torch.eye(4)[:2], torch.zeros(4)).reconstruct(x), True, True, True, True),
    ("LinearGaussian", "fit", _fitted, False, False, True, True),
    ("LinearGaussian", "fit_em", _fitted_by_em, False, True, True, True),
    ("LinearGaussian", "log_evidence", lambda x: _exact().log_evidence(x), True, True, True, True),
    ("LinearGaussian", "posterior", lambda x: _exact().posterior(x).mean, True, True, True, True),
    ("LinearGaussian", "reconstruct", lambda x: _exact().reconstruct(x), True, True, True, True),
    ("VAE", "model", lambda x: make_vae().model(x), True, False, True, True),
    ("VAE", "encode", lambda x: make_vae().encode(x).mean, True, True, False, False),
    ("VAE", "reconstruct", lambda x: make_vae().reconstruct(x), True, True, False, False),
    (
        "Autoencoder",
        "fit",
        lambda x: _autoencoder().fit(x, training=TRAINING, seed=0).squared_error,
        True,
        False,
        False,
        False,
    ),
    ("Autoencoder", "encode", lambda x: _autoencoder().encode(x), True, True, False, False),
    ("Autoencoder", "reconstruct", lambda x: _autoencoder().reconstruct(x), True, True, False, False),
]


def _with(value: float) -> Tensor:
    x = clean_data()
    x[1, 2] = value
    return x


def cases() -> Iterator[Case]:
    """Everything public that takes a size, data, a part or a file."""
    yield from _readers()
    yield from _networks()
    yield from _models()
    yield from _data()
    yield from _others()


def _readers() -> Iterator[Case]:
    for name, method, read, one, missing, integers, single in READERS:
        of = f"pyro_vae.{name}"

        def case(
            what: str, x: Callable[[], Any], read: Any = read, method: str = method, of: str = of, **expected: Any
        ) -> Case:
            return Case(of=of, what=f"{method} {what}", call=lambda: read(x()), **expected)

        tensor = "expected .*[Tt]ensor.*got"
        yield case("nested lists", lambda: clean_data().tolist(), error=tensor, kind=TypeError)
        yield case("None", lambda: None, error=tensor, kind=TypeError)
        yield case("a frame", lambda: pd.DataFrame(clean_data().numpy()), error=tensor, kind=TypeError)
        if (name, method) != ("Autoencoder", "fit"):
            yield case("an array", lambda: clean_data().numpy(), error=tensor, kind=TypeError)
        yield case("one row without its batch", lambda: clean_data()[0], error="expected")
        if (name, method) not in (("PCA", "encode"), ("PCA", "reconstruct"), ("VAE", "encode"), ("VAE", "reconstruct")):
            yield case("no row", lambda: clean_data()[:0], error="expected")
        wide = lambda: torch.randn(6, 7, dtype=torch.float64)  # noqa: E731
        if not method.startswith("fit") or name == "Autoencoder":
            yield case("too wide", wide, error=r"\(\d, 7\)|7 x 1 = 7")
        yield case("complex", lambda: clean_data() + 0j, error="expected")
        yield case("bfloat16", lambda: clean_data().bfloat16(), error="expected")
        yield case("device meta", lambda: clean_data().to("meta"), error="meta")
        clean = lambda read=read: read(clean_data())  # noqa: E731
        for what, x in (
            ("not contiguous", lambda: clean_data().T.contiguous().T),
            ("asking for a gradient", lambda: clean_data().requires_grad_()),
        ):
            yield case(what, x, clean=clean, tolerance=1e-9)
        if one:
            yield case("one datapoint", lambda: clean_data()[:1])
        else:
            yield case("one datapoint", lambda: clean_data()[:1], error="at least 2 rows")
        if not missing:
            yield case("NaN", lambda: _with(NAN), error="expected finite|NaN")
            yield case("infinity", lambda: _with(math.inf), error="expected finite|infinity|inf")
        counted = lambda read=read: read(_counts())  # noqa: E731
        for dtype in (torch.uint8, torch.int64):
            data = lambda dtype=dtype: _counts().to(dtype)  # noqa: E731
            if integers:
                yield case(str(dtype), data, clean=counted, tolerance=1e-9)
            else:
                yield case(str(dtype), data, error="expected torch.float64 like the model's parameters; got torch")
        if single:
            yield case("float32", lambda: clean_data().float(), clean=clean, tolerance=1e-3)
        else:
            yield case("float32", lambda: clean_data().float(), error="expected torch.float64 like .*got torch.float32")
        for scale in (1e30, 1e-30):
            if not (method == "fit_em" and scale < 1):
                yield case(f"times {scale:g}", lambda scale=scale: clean_data() * scale)
        if method in ("fit", "fit_em") and name != "Autoencoder":
            yield case(
                "the same row throughout",
                lambda: torch.ones(6, 4),
                **({} if method == "fit_em" else {"error": "expected"}),
            )


def _columns_first() -> Tensor:
    return torch.linspace(-1, 1, 3 * 64).reshape(64, 3).T


def _networks() -> Iterator[Case]:
    for value in NO_SIZES:
        for name, call in (
            ("Linear", lambda value=value: Linear(value, 3)),
            ("Linear", lambda value=value: Linear(3, value)),
            ("MLP", lambda value=value: MLP(3, value, 4)),
            ("MLP", lambda value=value: MLP(value, 4)),
            ("ConvEncoder", lambda value=value: ConvEncoder((8, value), 4)),
            ("ConvEncoder", lambda value=value: ConvEncoder((8, 8), value)),
            ("ConvDecoder", lambda value=value: ConvDecoder(value, (8, 8), 64)),
            ("ConvDecoder", lambda value=value: ConvDecoder(2, (8, 8), 64, channels=(value,))),
        ):
            yield Case(
                of=f"pyro_vae.{name}", what=f"a size of {value!r}", call=call, error="expected a positive integer; got"
            )
    torch.manual_seed(0)
    made: dict[str, Callable[[], nn.Module]] = {
        "Linear": lambda: Linear(64, 2),
        "MLP": lambda: MLP(64, 3, 2),
        "ConvEncoder": lambda: ConvEncoder((8, 8), 2),
        "ConvDecoder": lambda: ConvDecoder(64, (8, 8), 64),
    }
    for name, make in made.items():
        of = f"pyro_vae.{name}"
        for what, x, error, kind in (
            ("x too wide", lambda: torch.zeros(3, 65), r"expected rows of 64 values; got shape \(3, 65\)", ValueError),
            ("x a number", lambda: torch.tensor(1.0), r"expected rows of 64 values; got shape \(\)", ValueError),
            ("x a list", lambda: [[0.0] * 64], r"expected a tensor \(..., 64\); got list", TypeError),
            ("x an array", lambda: np.zeros((3, 64)), r"expected a tensor \(..., 64\); got ndarray", TypeError),
            (
                "x float32",
                lambda: torch.zeros(3, 64).float(),
                "x: expected torch.float64 .*got torch.float32",
                ValueError,
            ),
            (
                "x integers",
                lambda: torch.zeros(3, 64).long(),
                "x: expected torch.float64 .*got torch.int64",
                ValueError,
            ),
        ):
            yield Case(of=of, what=what, call=lambda make=make, x=x: make()(x()), error=error, kind=kind)
        yield Case(
            of=of,
            what="x not contiguous",
            call=lambda make=make: _seeded(make)(_columns_first()),
            clean=lambda make=make: _seeded(make)(_columns_first().contiguous()),
            tolerance=1e-9,
        )
        yield Case(
            of=of,
            what="one row",
            call=lambda make=make: _seeded(make)(_columns_first()[:1]),
            clean=lambda make=make: _seeded(make)(_columns_first())[:1],
            tolerance=1e-9,
        )
    for name, error, call in (
        ("MLP", "expected at least two sizes", lambda: MLP(3)),
        ("MLP", "activation: expected one of", lambda: MLP(3, 2, activation="x")),
        ("MLP", "expected a positive integer; got", lambda: MLP(3, [4, 4], 2)),
        ("ConvEncoder", r"image_shape: expected \(H, W\)", lambda: ConvEncoder((8,), 4)),
        ("ConvEncoder", r"image_shape: expected \(H, W\)", lambda: ConvEncoder(8, 4)),
        ("ConvEncoder", "without an image shape", lambda: ConvEncoder(None, 4)),
        ("ConvEncoder", "channels: expected at most", lambda: ConvEncoder((1, 1), 4)),
        ("ConvEncoder", "hidden: expected a tuple", lambda: ConvEncoder((8, 8), 4, hidden=3)),
        ("ConvDecoder", "channels: expected a tuple", lambda: ConvDecoder(2, (8, 8), 64, channels=3)),
        ("ConvDecoder", "num_outputs: expected a multiple", lambda: ConvDecoder(2, (8, 8), 63)),
    ):
        yield Case(of=f"pyro_vae.{name}", what=f"case {error[:40]}", call=call, error=error, kind=BOTH)


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return make()


def _vae(**parts: Any) -> VAE:
    usual = {
        "prior": StandardNormal(2),
        "likelihood": Gaussian(scale=0.5),
        "decoder": nn.Linear(2, 4),
        "family": MeanField(2),
        "encoder": nn.Linear(4, 4),
    }
    return VAE(**{**usual, **parts})


def _models() -> Iterator[Case]:
    of = "pyro_vae.VAE"
    for part, value, error in (
        ("prior", "normal", "prior: expected|expected"),
        ("prior", None, "expected"),
        ("prior", torch.distributions.Normal(0.0, 1.0), "expected"),
        ("prior", StandardNormal(3), "expected size 3"),
        ("likelihood", "gaussian", "likelihood: expected an object of class Likelihood; got 'gaussian'"),
        ("likelihood", Gaussian, "likelihood: expected .*got the class Gaussian. Call it"),
        ("likelihood", None, "likelihood: expected an object of class Likelihood; got None"),
        ("decoder", None, "decoder: expected an object of class Module; got None"),
        ("decoder", lambda z: z, "decoder: expected an object of class Module; got an object of class function"),
        ("decoder", nn.Linear(3, 4), "decoder: expected 2 inputs"),
        ("decoder", nn.Linear(2, 5), "decoder: expected|encoder"),
        ("family", None, "family: expected a variational family"),
        ("family", "mean-field", "family: expected an object of class Family; got 'mean-field'"),
        ("family", MeanField, "family: expected .*got the class MeanField. Call it"),
        ("family", MeanField(3), "family: expected size 2"),
        ("encoder", nn.Linear(4, 5), "encoder: expected family.num_params = 4"),
        ("encoder", "mlp", "encoder: expected an object of class Module"),
        ("encoder", lambda x: x, "encoder: expected an object of class Module"),
        ("latents", 3, "unexpected keyword argument 'latents'"),
    ):
        if (part, type(value)) == ("decoder", nn.Linear) and value.out_features == 5:
            continue  # A plain module need not announce its sizes: `model` says it.
        what = f"{part}={type(value).__name__} {str(value)[:30]!r}".split(" at 0x")[0]
        yield Case(of=of, what=what, call=lambda part=part, value=value: _vae(**{part: value}), error=error, kind=BOTH)
    for what, error, kind, call in (
        (
            "decoder too wide for x",
            "decoder: expected 4 x 1 = 4 outputs",
            ValueError,
            lambda: _vae(decoder=nn.Linear(2, 5)).model(clean_data()),
        ),
        (
            "no encoder",
            "encoder: expected a VAE with an encoder",
            ValueError,
            lambda: _vae(encoder=None).encode(clean_data()),
        ),
        (
            "z too wide",
            r"z: expected shape \(..., 2\); got \(2, 3\)",
            ValueError,
            lambda: _vae().decode(torch.zeros(2, 3)),
        ),
        ("z a list", "z: expected an object of class Tensor", TypeError, lambda: _vae().decode([0.0])),
        ("z float32", "z: expected torch.float64", ValueError, lambda: _vae().decode(torch.zeros(2, 2).float())),
        ("a seed below 0", "seed: expected", ValueError, lambda: _vae().generate(2, seed=-1)),
    ):
        yield Case(of=of, what=what, call=call, error=error, kind=kind)
    for value in NO_SIZES:
        for name, call in (
            ("VAE", lambda value=value: _vae().generate(value)),
            ("LinearGaussian", lambda value=value: _exact().generate(value)),
            ("LinearGaussian", lambda value=value: LinearGaussian.fit(clean_data(), value)),
            ("PCA", lambda value=value: PCA.fit(clean_data(), value)),
        ):
            yield Case(
                of=f"pyro_vae.{name}",
                what=f"a number of {value!r}",
                call=call,
                error="expected a positive integer; got",
            )
    w, b = torch.ones(4, 2), torch.zeros(4)
    for what, arguments, error in (
        ("scale 0", (w, b, 0.0), "scale: expected positive"),
        ("scale below 0", (w, b, -1.0), "scale: expected positive"),
        ("scale NaN", (w, b, NAN), "scale: expected positive"),
        ("scale a word", (w, b, "a"), "scale: expected an object of class Tensor; got 'a'"),
        ("scales of another size", (w, b, torch.ones(3)), "scale: expected one number or shape"),
        ("bias of another size", (w, b[:3], 1.0), r"bias: expected shape \(4,\)"),
        ("weight a vector", (b, b, 1.0), r"weight: expected shape \(P, D\)"),
        ("weight a list", (w.tolist(), b, 1.0), "weight: expected an object of class Tensor"),
        ("weight NaN", (w * NAN, b, 1.0), "weight: expected finite"),
        ("weight integers", (w.long(), b, 1.0), "weight: expected floating-point"),
        ("weight empty", (w[:, :0], b, 1.0), r"weight: expected shape \(P, D\)"),
    ):
        call = lambda arguments=arguments: LinearGaussian(*arguments)  # noqa: E731
        yield Case(of="pyro_vae.LinearGaussian", what=what, call=call, error=error, kind=BOTH)
    singular = lambda: LinearGaussian(w.double(), b.double(), 1e-30).log_evidence(clean_data())  # noqa: E731
    yield Case(
        of="pyro_vae.LinearGaussian",
        what="scale 1e-30",
        call=singular,
        error="scale: expected noise that torch.float64 can",
    )
    yield Case(
        of="pyro_vae.LinearGaussian",
        what="scale 1e30",
        call=lambda: _exact(1e30).log_evidence(clean_data()),
        clean=lambda: torch.full((6,), -4 * math.log(1e30 * math.sqrt(2 * math.pi))),
        tolerance=1e-6,
    )
    yield Case(
        of="pyro_vae.LinearGaussian",
        what="D = P",
        call=lambda: LinearGaussian.fit(clean_data(), 4),
        error="expected fewer",
    )
    for what, error, call in (
        ("shapes", "expected shapes", lambda: PCA(torch.ones(2, 4), torch.zeros(3))),
        ("lists", "components: expected an object of class Tensor", lambda: PCA([[1.0]], [0.0])),
        ("D > P", "num_latents: expected at most 4", lambda: PCA.fit(clean_data(), 5)),
        ("codes too wide", r"z: expected shape \(N, 2\)", lambda: PCA.fit(clean_data(), 2).decode(torch.zeros(2, 7))),
    ):
        yield Case(of="pyro_vae.PCA", what=what, call=call, error=error, kind=BOTH)
    for what, error, call in (
        ("None for networks", "encoder: expected an object of class Module", lambda: Autoencoder(None, None)),
        ("sizes that do not meet", "decoder: expected the encoder's", lambda: Autoencoder(Linear(4, 2), Linear(3, 4))),
        (
            "held-out data too wide",
            "7",
            lambda: _autoencoder().fit(clean_data(), validation=torch.zeros(5, 7), training=TRAINING),
        ),
        (
            "a dictionary of settings",
            "training: expected",
            lambda: _autoencoder().fit(clean_data(), training={"epochs": 1}),
        ),
    ):
        yield Case(of="pyro_vae.Autoencoder", what=what, call=call, error=error, kind=BOTH)
    for value in ("vae", None, VAE):
        call = lambda value=value: lib.BayesianVAE(value)  # noqa: E731
        yield Case(
            of="pyro_vae.BayesianVAE", what=f"vae={value!r}", call=call, error="vae: expected an object", kind=TypeError
        )
    for option in ("scale", "init_scale"):
        for value in (0, -1, NAN, "a", None):
            call = lambda option=option, value=value: lib.BayesianVAE(make_vae(), **{option: value})  # noqa: E731
            yield Case(
                of="pyro_vae.BayesianVAE", what=f"{option}={value!r}", call=call, error=f"{option}: expected a positive"
            )


def _rows(num_data: int = 20) -> np.ndarray:
    return np.random.default_rng(0).random((num_data, 3))


def _first(data: Any, **options: Any) -> Tensor:
    return load(data, **options).train.tensor()


def _data() -> Iterator[Case]:
    of = "pyro_vae.load"
    for what, value, error in (
        ("None", None, "expected a name, a path"),
        ("a number", 3, "expected a name, a path"),
        ("a name that is near", "digit", "Did you mean 'digits'"),
        ("no file", "nowhere/a.npy", "a.npy"),
        ("a folder", "/tmp", "got a folder"),
        ("nested lists", [[1.0]], "expected a name, a path"),
        ("a vector", torch.rand(20), "expected rows"),
        ("no datapoint", torch.zeros(0, 3), "at least one value"),
        ("no value a datapoint", torch.zeros(20, 0), "at least one value"),
        ("five dimensions", torch.zeros(20, 2, 2, 2, 2), "expected rows"),
        ("NaN", np.full((20, 3), NAN), "NaN or infinity in 20 rows"),
        ("too few rows", _rows(3), "expected at least 1 in each"),
        ("complex numbers", _rows() + 0j, "expected real numbers"),
        ("strings", np.full((20, 3), "a"), "expected real numbers"),
        ("objects", np.full((20, 3), 1.0, dtype=object), "expected real numbers"),
        ("device meta", torch.zeros(20, 3, device="meta"), "meta"),
        ("a sparse tensor", torch.eye(20).to_sparse(), "sparse"),
        ("a frame", pd.DataFrame(_rows()), "DataFrame"),
        ("a frame as wide as long", pd.DataFrame(np.eye(20)), "DataFrame"),
        ("a masked array", np.ma.masked_array(_rows(), _rows() > 0.5), "has a mask"),
    ):
        yield Case(of=of, what=what, call=lambda value=value: load(value), error=error, kind=(ValueError, OSError))
    clean = lambda: _first(_rows())  # noqa: E731
    for what, make in (
        ("a tensor that asks for a gradient", lambda: torch.tensor(_rows()).requires_grad_()),
        ("an array not contiguous", lambda: np.asfortranarray(_rows())),
        ("an array read backwards", lambda: np.ascontiguousarray(_rows()[::-1])[::-1]),
        ("a big-endian array", lambda: _rows().astype(">f8")),
        ("a long double array", lambda: _rows().astype(np.longdouble)),
    ):
        yield Case(of=of, what=what, call=lambda make=make: _first(make()), clean=clean, tolerance=1e-15)
    ints = (10 * _rows()).round()
    for dtype in ("uint16", "int8", "int64", "float16", "float32"):
        call = lambda dtype=dtype: _first(ints.astype(dtype))  # noqa: E731
        yield Case(of=of, what=f"{dtype} counts", call=call, clean=lambda: _first(ints))
    yield Case(
        of=of,
        what="uint8 gray levels",
        call=lambda: _first(ints.astype("uint8")),
        clean=lambda: _first(ints / 255),
        tolerance=1e-15,
    )
    for scale in (1e30, 1e-30):
        yield Case(
            of=of,
            what=f"times {scale:g}",
            call=lambda scale=scale: _first(scale * _rows()) / scale,
            clean=clean,
            tolerance=1e-12,
        )
    for option in ("num_validation", "num_test"):
        for value in (0, -1, 1.5, True, "a", NAN, 100):
            call = lambda option=option, value=value: load(_rows(), **{option: value})  # noqa: E731
            yield Case(of=of, what=f"{option}={value!r}", call=call, error="expected", kind=ValueError)
    for option in ("binarize_seed", "split_seed"):
        for value in (-1, 1.5, True, "a", NAN, None):
            call = lambda option=option, value=value: load(_rows(), **{option: value})  # noqa: E731
            yield Case(of=of, what=f"{option}={value!r}", call=call, error="expected", kind=ValueError)
    for what, options, error in (
        ("binarize", {"binarize": "yes"}, "binarize='yes': expected one of"),
        ("missing", {"missing": "drop"}, "missing='drop': expected one of"),
        ("dtype", {"dtype": "float16"}, "dtype='float16': expected 'float32'"),
        ("dtype of integers", {"dtype": torch.int64}, "dtype=torch.int64: expected 'float32'"),
        ("an option of other files", {"key": "x"}, "an option of .npz files"),
    ):
        yield Case(of=of, what=what, call=lambda options=options: load("digits", **options), error=error)
    yield Case(
        of=of,
        what="reals as probabilities",
        call=lambda: load(4 * _rows(), binarize="fixed"),
        error="expected values in",
    )
    of = "pyro_vae.Split"
    for what, call, error, kind in (
        ("an index beyond", lambda: load("digits").test[torch.tensor([9999])], "out of bounds", IndexError),
        ("a broken index", lambda: load("digits").test[torch.tensor([0.5])], "indices must be", IndexError),
        ("head(0)", lambda: load("digits").test.head(0), "expected", ValueError),
        ("head(-1)", lambda: load("digits").test.head(-1), "expected", ValueError),
        ("head(1.5)", lambda: load("digits").test.head(1.5), "expected|integers", BOTH),
    ):
        yield Case(of=of, what=what, call=call, error=error, kind=kind)
    index = torch.tensor([3, 1])
    for what, key in (("a list", [3, 1]), ("an array", np.array([3, 1])), ("int32", index.int())):
        call = lambda key=key: load("digits").test[key]  # noqa: E731
        yield Case(of=of, what=f"{what} for the index", call=call, clean=lambda: load("digits").test[index])
    yield Case(of="pyro_vae.Dataset", what="printed", call=lambda: str(load(_rows())))


def _others() -> Iterator[Case]:
    compare = lib.compare
    for what, error, call in (
        (
            "a name for the data",
            "dataset: expected an object of class Dataset; got 'digits'",
            lambda: compare("digits", 2),
        ),
        ("a tensor for the data", "dataset: expected an object of class Dataset", lambda: compare(clean_data(), 2)),
        ("D = 0", "num_latents: expected a positive", lambda: compare(load("digits"), 0)),
        ("D > P", "num_latents: expected fewer", lambda: compare(load("digits"), 65)),
        ("no datapoint", "num_data: expected a positive", lambda: compare(load("digits"), 2, num_data=0)),
        ("a dictionary of settings", "training: expected", lambda: compare(load("digits"), 2, training={"epochs": 1})),
    ):
        yield Case(of="pyro_vae.compare", what=what, call=call, error=error, kind=BOTH)
    log_p = Evidence(value=torch.zeros(3), se=torch.zeros(3), method="m")
    yield Case(
        of="pyro_vae.paired_difference",
        what="evidence without its data",
        call=lambda: lib.paired_difference(log_p, log_p),
        error="a: expected an object of class Scored",
        kind=TypeError,
    )
    for value in (None, 3, "nowhere", Path(__file__), Path(__file__).parent):
        call = lambda value=value: lib.open_run(value)  # noqa: E731
        kind = (ValueError, TypeError, OSError)
        yield Case(
            of="pyro_vae.open_run",
            what=f"folder={type(value).__name__} {str(value)[-8:]}",
            call=call,
            error=".",
            kind=kind,
        )
    yield Case(
        of="pyro_vae.Run", what="too few parts", call=lambda: lib.Run(1, 2), error="missing 2 required", kind=TypeError
    )
