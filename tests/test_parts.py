import copy
import dataclasses
import json
import pickle
from typing import Annotated, Literal

import pytest
import torch
import tyro

from inference import families
from inference.guides import Amortized
from pyro_vae import likelihoods, networks, parts, priors
from pyro_vae.names import kebab
from pyro_vae.parts import KINDS, Parts, Sizes
from pyro_vae.parts.signatures import descriptions
from pyro_vae.vae import VAE

SIZES = Sizes(num_latents=2, num_values=6, image_shape=(2, 3), max_value=16.0, num_levels=17, level_step=1.0)
EVERY = [(kind, name) for kind in KINDS for name in parts.catalog(kind)]
every = pytest.mark.parametrize(("kind", "name"), EVERY)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line with parts.

    Args:
        seed: seed of the run.
    """

    seed: int = 0
    parts: Annotated[Parts, tyro.conf.arg(name="")] = Parts()


def parse(*args, command=Command):
    return tyro.cli(command, args=list(args), config=(tyro.conf.CascadeSubcommandArgs,))


def test_catalog_has_the_classes_of_the_rooms():
    assert parts.catalog("prior")["standard-normal"] is priors.StandardNormal
    assert parts.catalog("likelihood")["gaussian-shared-scale"] is likelihoods.GaussianSharedScale
    assert parts.catalog("family")["full-covariance"] is families.FullCovariance
    assert parts.catalog("decoder")["mlp"] is networks.MLP
    for kind in KINDS:
        assert not any(name in parts.catalog(kind) for name in ("prior", "likelihood", "family", "network"))


@pytest.mark.parametrize(
    ("class_name", "name"),
    [
        ("MLP", "mlp"),
        ("StudentT", "student-t"),
        ("GaussianSharedScale", "gaussian-shared-scale"),
        ("VAEPrior2D", "vae-prior2-d"),
    ],
)
def test_names(class_name, name):
    assert kebab(class_name) == name


@every
def test_round_trip_through_json(kind, name):
    chosen = parts.options(kind, name)
    config = json.loads(json.dumps(parts.to_config(chosen)))
    assert config["part"] == name
    assert parts.from_config(kind, config) == chosen
    assert pickle.loads(pickle.dumps(chosen)) == chosen
    assert copy.deepcopy(chosen) == chosen
    with pytest.raises(dataclasses.FrozenInstanceError):
        chosen.anything = 1


@every
def test_every_part_trains_in_a_vae_and_comes_from_the_command_line(kind, name):
    chosen = parse(f"{kind}:{name}").parts
    assert getattr(chosen, kind) == parts.options(kind, name)
    vae = VAE(**chosen.build(SIZES))
    x = torch.randint(0, 2, (5, 6)).double()
    if name == "beta":  # Open at both ends.
        x = 0.25 + x / 2
    assert vae.encode(x).sample().shape == (5, vae.num_latents)
    vae.model(x)
    again = VAE(**Parts.from_config(json.loads(json.dumps(chosen.to_config()))).build(SIZES))
    again.load_state_dict(vae.state_dict())
    assert repr(again) == repr(vae)


@every
def test_help_has_the_summary_and_every_option(kind, name, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(f"{kind}:{name}", "--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    summary = parts.catalog(kind)[name].__doc__.split("\n\n")[0].split("\n")
    assert " ".join(summary[0].split()) in text
    for field in dataclasses.fields(parts.options(kind, name)):
        assert f"--{kind}.{field.name.replace('_', '-')}" in text
        described = descriptions(type(parts.options(kind, name)).__doc__)[field.name]
        assert len(described) > 10, f"{name}.{field.name} has no entry in the docstring's Args"
        assert described in text


def test_help_lists_every_part(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    for kind, name in EVERY:
        assert f"{kind}:{name}" in text
    assert "encoder:none" in text and "seed of the run" in text


def test_defaults():
    assert parse() == Command()
    assert parse().parts == Parts()
    vae = VAE(**Parts().build(SIZES))
    assert repr(vae.decoder) == "MLP(2, 200, 200, 6, activation='elu')"
    assert repr(vae.encoder) == "MLP(6, 200, 200, 4, activation='elu')"


def test_subcommands_in_any_order_with_flags_after_them():
    came = parse(
        *["decoder:mlp", "--decoder.hidden", "20", "10", "--decoder.activation", "tanh"],
        *["likelihood:binomial", "--likelihood.total-count", "20", "prior:diagonal-normal", "--seed", "3"],
    )
    assert came.seed == 3
    assert came.parts == Parts(
        decoder=parts.options("decoder", "mlp", hidden=(20, 10), activation="tanh"),
        likelihood=parts.options("likelihood", "binomial", total_count=20),
        prior=parts.options("prior", "diagonal-normal"),
    )


def test_options_of_a_default_part_need_no_subcommand():
    assert parse("--decoder.hidden", "20", "10").parts.decoder.hidden == (20, 10)


def test_no_encoder():
    chosen = parse("encoder:none").parts
    assert chosen.encoder is None
    assert chosen.to_config()["encoder"] is None
    assert Parts.from_config(chosen.to_config()) == chosen
    vae = VAE(**chosen.build(SIZES))
    assert vae.guide is None and vae.family is not None


@pytest.mark.parametrize(
    "args",
    [
        pytest.param(["likelihood:binomail"], id="unknown part"),
        pytest.param(["likelihood:binomial", "--likelihood.total-count", "many"], id="not a number"),
        pytest.param(["likelihood:binomial", "--likelihood.total", "16"], id="unknown option"),
        pytest.param(["decoder:mlp", "--decoder.hidden", "20", "1.5"], id="not an integer"),
        pytest.param(["decoder:mlp", "--decoder.activation", "rleu"], id="not a choice"),
        pytest.param(["likelihood:bernoulli", "--likelihood.total-count", "16"], id="another part's option"),
    ],
)
def test_bad_command_lines_exit_2(args, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(*args)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "" and args[-1] in captured.err


def test_total_count_defaults_to_the_data():
    build = Parts(likelihood=parts.options("likelihood", "binomial")).build
    assert build(SIZES)["likelihood"].total_count == 16
    chosen = Parts(likelihood=parts.options("likelihood", "binomial", total_count=20))
    assert chosen.build(SIZES)["likelihood"].total_count == 20
    with pytest.raises(ValueError, match="total_count: .* 0.7"):
        build(dataclasses.replace(SIZES, max_value=0.7))


def test_decoder_ends_in_the_likelihoods_parameters():
    built = Parts(likelihood=parts.options("likelihood", "gaussian-decoder-scale")).build(SIZES)
    assert built["decoder"].num_outputs == 12


def test_sizes_come_back_from_json():
    assert Sizes(**json.loads(json.dumps(dataclasses.asdict(SIZES)))) == SIZES
    assert Sizes(2, 3) == Sizes(**dataclasses.asdict(Sizes(2, 3)))


def declare(monkeypatch, room, cls):
    """Put a class into a room as if its file had defined it."""
    cls.__module__ = room.__name__
    monkeypatch.setattr(room, cls.__name__, cls, raising=False)


def test_a_new_class_appears_without_further_code(monkeypatch, capsys):
    class StudentT(priors.Prior):
        """Heavy tails.

        Args:
            num_latents: D.
            df: degrees of freedom, any
                positive number.
            tails: which tails.
        """

        def __init__(
            self,
            num_latents: int,
            *,
            df: float = 4.0,
            tails: Literal["both", "left"] = "both",
            knots: tuple[int, ...] = (),
        ) -> None:
            super().__init__(num_latents)
            self.df, self.tails, self.knots = df, tails, knots

        def forward(self):
            return torch.distributions.StudentT(self.df).expand([self.num_latents])

    declare(monkeypatch, priors, StudentT)
    chosen = tyro.cli(parts.subcommands("prior"), args=["student-t", "--df", "3", "--tails", "left"])
    assert chosen == parts.options("prior", "student-t", df=3, tails="left")
    assert type(chosen.df) is float
    assert parts.to_config(chosen) == {"part": "student-t", "df": 3.0, "tails": "left", "knots": []}
    built = Parts(prior=chosen)
    assert Parts.from_config(built.to_config()) == built
    prior = parts.build(chosen, {"num_latents": 5})
    assert (prior.num_latents, prior.df, prior.tails) == (5, 3.0, "left")
    with pytest.raises(SystemExit):
        tyro.cli(parts.subcommands("prior"), args=["student-t", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Heavy tails." in text and "degrees of freedom, any positive number. (default: 4.0)" in text


def test_a_prior_may_be_made_from_the_guide(monkeypatch):
    class VampPrior(priors.Prior):
        """From the guide."""

        def __init__(self, guide: Amortized, num_components: int = 7, *, spread: float = 1.0) -> None:
            super().__init__(guide.family.num_latents)
            self.num_components = num_components
            self.encoder = guide.encoder

    declare(monkeypatch, priors, VampPrior)
    chosen = Parts(prior=parts.options("prior", "vamp-prior"))
    built = chosen.build(SIZES)
    assert built["prior"].encoder is built["encoder"]
    assert built["prior"].num_components == 7
    with pytest.raises(ValueError, match="prior vamp-prior: needs guide, which is not known here"):
        dataclasses.replace(chosen, encoder=None).build(SIZES)


def test_roles_imports_and_private_classes_are_respected(monkeypatch):
    class ConvEncoder(networks.Network):
        """Encoder alone."""

        roles = frozenset({"encoder"})

        def __init__(
            self, num_inputs: int, num_outputs: int, image_shape: tuple[int, ...], *, channels: int = 4
        ) -> None:
            super().__init__(num_inputs, num_outputs)
            self.image_shape = image_shape

    class _Hidden(networks.Network):
        """Private."""

    class Imported(networks.Network):
        """From elsewhere."""

    declare(monkeypatch, networks, ConvEncoder)
    declare(monkeypatch, networks, _Hidden)
    monkeypatch.setattr(networks, "Imported", Imported, raising=False)
    assert set(parts.catalog("encoder")) - set(parts.catalog("decoder")) == {"conv-encoder"}
    assert not {"hidden", "-hidden", "imported"} & set(parts.catalog("encoder"))
    chosen = Parts(encoder=parts.options("encoder", "conv-encoder"))
    assert chosen.build(SIZES)["encoder"].image_shape == (2, 3)
    with pytest.raises(ValueError, match="encoder conv-encoder: needs image_shape"):
        chosen.build(dataclasses.replace(SIZES, image_shape=None))


def test_a_part_in_a_folder_of_its_room_is_found(monkeypatch):
    class Planar(families.MeanField):
        """In a file of the folder."""

    Planar.__module__ = f"{families.__name__}.planar"
    monkeypatch.setattr(families, "Planar", Planar, raising=False)
    assert parts.catalog("family")["planar"] is Planar


def test_an_option_without_default_is_the_authors_mistake(monkeypatch):
    class NoDefault(priors.Prior):
        """Wrong."""

        def __init__(self, num_latents: int, *, df: float) -> None:
            super().__init__(num_latents)

    declare(monkeypatch, priors, NoDefault)
    with pytest.raises(TypeError, match="option 'df' has no default"):
        parts.options("prior", "no-default")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: parts.catalog("priors"), "kind: expected one of prior, .* got 'priors'", id="kind"),
        pytest.param(
            lambda: parts.options("likelihood", "binomail"), "likelihood: .* Did you mean 'binomial'", id="part"
        ),
        pytest.param(
            lambda: parts.options("likelihood", "binomial", totalcount=3),
            "likelihood binomial: .* got 'totalcount'. Did you mean 'total_count'",
            id="option",
        ),
        pytest.param(
            lambda: parts.options("prior", "standard-normal", p=3), "it has no options; got 'p'", id="no options"
        ),
        pytest.param(
            lambda: parts.options("decoder", "mlp", activation="rleu"),
            "activation: .* Did you mean 'relu'",
            id="choice",
        ),
        pytest.param(
            lambda: parts.options("decoder", "mlp", hidden=200),
            r"hidden: expected tuple\[int, ...\]; got 200",
            id="tuple",
        ),
        pytest.param(lambda: parts.options("decoder", "mlp", hidden=[2, "x"]), r"hidden\[1\]: .* got 'x'", id="member"),
        pytest.param(
            lambda: parts.options("likelihood", "gaussian", scale="1"), "scale: expected float; got '1'", id="text"
        ),
        pytest.param(lambda: parts.options("likelihood", "gaussian", scale=True), "scale: .* got True", id="boolean"),
        pytest.param(
            lambda: parts.options("likelihood", "binomial", total_count=1.5),
            "total_count: expected int or None; got 1.5",
            id="optional",
        ),
        pytest.param(lambda: parts.from_config("prior", {}), 'prior: expected {"part": name', id="no part"),
        pytest.param(lambda: parts.from_config("prior", "mlp"), "got 'mlp'", id="text for a part"),
        pytest.param(lambda: Parts.from_config({"prio": {}}), "got 'prio'. Did you mean 'prior'", id="unknown kind"),
        pytest.param(lambda: Parts.from_config({"prior": None}), "prior: .* got None", id="no prior"),
        pytest.param(lambda: Sizes(0, 3), "num_latents: expected a positive integer; got 0", id="no latents"),
        pytest.param(lambda: Sizes(2, -3), "num_values: .* got -3", id="negative values"),
        pytest.param(
            lambda: Parts(decoder=parts.options("decoder", "mlp", hidden=(0,))).build(SIZES),
            r"hidden\[0\]: .* got 0",
            id="empty layer",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
