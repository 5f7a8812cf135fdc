"""Whether each datapoint's numbers depend on its own row and its own particle alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from jaxtyping import Bool, Float, Int
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import Distribution

from inference.densities import guide_distribution, site_log_probs
from inference.families import from_noise, noise_size
from inference.isolation import modules_of
from inference.noise import random_states, set_random_states

__all__ = ["require_rowwise"]

Program = Callable[..., Any]
Terms = dict[str, Float[Tensor, " B"]]

# More than two: some programs treat one or two rows in another way than many.
FEW = 6
# Buffers larger than this are data, not states that a run changes.
LARGEST_STATE = 2**20
# Rounding of an input, relative, and how much more than its effect the rounding inside a program may have.
ROUNDING = {torch.float64: 2.0**-51, torch.float32: 2.0**-22}
INSIDE = 64.0
# Runs of a program that draws random numbers though all its sites have values.
REPEATS = 16


@torch.no_grad()
def require_rowwise(
    model: Program | None,
    x: Float[Tensor, "N P"],
    z: Float[Tensor, "S N D"],
    *,
    site: str,
    guide: Program | None = None,
    company: bool = True,
) -> None:
    """Refuse programs whose log densities at a datapoint are not a function of its row and its latent vector.

    The first rows are run twice, which shows hidden random numbers; in other orders, other numbers and with all of x,
    which shows rows that depend on each other; and with S particles at once, with one, and without the particle
    dimension, which shows operations that take one dimension for another. Generators, buffers and modes are the same
    after.

    Args:
        model: Pyro model; None: the guide alone is checked.
        x: (N, P) datapoints.
        z: (S, N, D) latent vectors of each; with three or more, particles that depend on each other show.
        site: name of the latent site.
        guide: Pyro guide, checked too where given.
        company: whether the other rows must not matter. Where they may, as for a loss that is a sum over the minibatch,
            only the particle dimension is looked at.

    Raises:
        ValueError: the message names the program, the site and the likely cause.
    """
    few = torch.arange(min(len(x), FEW), device=x.device)
    particles = z[: min(len(z), 2 if len(few) == 3 else 3)]

    with _left_alone(model, guide):
        if guide is not None and company:
            look = _Look("guide", guide, partial(_guide_terms, guide, site), x, particles)
            if look.repeats(few):
                look.in_company(few)
        if model is None:
            return
        look = _Look("model", model, partial(_model_terms, model, site), x, particles)
        # A program that draws anew in each run cannot be compared; where company may matter, so may what is drawn.
        if not look.repeats(few, refuse=company):
            return
        if company:
            look.in_company(few)
        look.in_particles(few)


class Rows(NamedTuple):
    """Datapoints with a latent vector each."""

    x: Float[Tensor, "B P"]
    z: Float[Tensor, "*S B D"]


def _model_terms(model: Program, site: str, rows: Rows) -> Terms:
    return site_log_probs(model, rows.x, rows.z, site=site)


def _guide_terms(guide: Program, site: str, rows: Rows) -> Terms:
    # Given the value, it draws nothing of its own.
    given: Program = poutine.condition(guide, {site: rows.z})
    return {site: _describe(guide_distribution(given, rows.x, site=site)[1], rows.z)}


class _Look:
    """One program's log densities of the same rows under different circumstances."""

    def __init__(
        self, kind: str, program: Program, terms: Callable[[Rows], Terms], x: Tensor, z: Float[Tensor, "S N D"]
    ) -> None:
        self.kind = kind
        self.program = program
        self.terms = terms
        self.x = x
        self.z = z
        self.expected: Terms = {}
        self.slack: Terms = {}

    def repeats(self, few: Int[Tensor, " B"], *, refuse: bool = True) -> bool:
        """Whether two runs on the same rows agree; what they give is what later runs are compared with."""
        rows = Rows(self.x[few], self.z[0, few])
        self.expected = self.terms(rows)
        self.slack = self._rounding()
        before = _generators()
        found = self.terms(rows)
        draws = _generators() != before
        # Rare random events, as dropout of few values is, may spare one run.
        for _ in range(REPEATS if draws else 1):
            if not self._compare(found, few, _hidden_randomness if refuse else None):
                return False
            found = self.terms(rows) if draws else found
        self.slack = self._slack(rows)
        return True

    def in_company(self, few: Int[Tensor, " B"]) -> None:
        """Compare with runs in other company; refuse where it matters."""
        if len(few) == 1:
            # The same datapoint with other latent vectors beside it.
            others = torch.arange(len(self.z), device=few.device)
            for order in (others, others[:2].flip(0)) if len(others) > 1 else (others.repeat(2),):
                found = self._run(Rows(self.x[:1].expand(len(order), -1), self.z[order, 0]))
                self._compare(_at(found, order == 0), few, self._coupled)
        else:
            copies = few.new_zeros(len(few) + 1)
            for order in (torch.cat([few.flip(0), few[:1]]), copies, few[: -(-len(few) // 2)]):
                if len(order) > 1:
                    self._compare(self._run(Rows(self.x[order], self.z[0, order])), order, self._coupled)
        if len(self.x) > len(few):
            found = self._run(Rows(self.x, self.z[0]))
            self._compare({name: values[: len(few)] for name, values in found.items()}, few, self._coupled)
        if bool((self.x[few] == self.x[0]).all()):
            self._beside_another(few)

    def in_particles(self, few: Int[Tensor, " B"]) -> None:
        """Compare with runs under a particle dimension; refuse where it matters."""
        rows = self.x[few]
        for particles in {1, len(self.z)}:
            try:
                found = self.terms(Rows(rows, self.z[:particles, few]))
            except (ValueError, RuntimeError) as error:
                raise ValueError(
                    f"{self.kind}: expected one that takes {particles} latent vectors a datapoint, z of shape "
                    f"({particles}, {len(few)}, D), as it takes ({len(few)}, D); got an error: "
                    f"{str(error).splitlines()[0]} {_FROM_THE_RIGHT}"
                ) from error
            for s in range(particles):
                expected = self.expected if s == 0 else self._run(Rows(rows, self.z[s, few]))
                self._compare({name: values[s] for name, values in found.items()}, few, self._mixed_up, expected)

    def _beside_another(self, few: Tensor) -> None:
        """Compare with a run beside a row that is not among the data, as all of these are the same."""
        made = self.x[:1].roll(1, -1)
        made = 1 - self.x[:1] if torch.equal(made, self.x[:1]) else made
        try:
            with pyro.validation_enabled(is_validate=False):
                found = self.terms(Rows(torch.cat([self.x[:1], made]), self.z[0, few[:1].expand(2)]))
        except Exception:  # noqa: BLE001 (the row may be no datapoint of this program: then nothing is learnt)
            return
        self._compare({name: values[:1] for name, values in found.items()}, few[:1], self._coupled)

    def _run(self, rows: Rows) -> Terms:
        try:
            return self.terms(rows)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"{self.kind}: expected one that takes any rows of the data, in any number and order; {len(rows.x)} of "
                f"them give an error: {_line(error)}.{self._advice()}"
            ) from error

    def _rounding(self) -> Terms:
        """Rounding of the sums over a row's values."""
        precision = _precision(self.program, self.x, self.z)
        return {
            name: precision * (1 + values.abs().nan_to_num(0.0, 0.0, 0.0)) for name, values in self.expected.items()
        }

    def _slack(self, rows: Rows) -> Terms:
        """How far two right answers may be apart: rounding of sums, and the effect of rounding in the inputs."""
        effect = {name: values.new_zeros(()) for name, values in self.expected.items()}
        # Either half of the values: what one leaves alone the other moves.
        for half in (0, 1):
            try:
                with pyro.validation_enabled(is_validate=False):
                    moved = self.terms(Rows(_rounded(rows.x, half), _rounded(rows.z, half)))
            except Exception:  # noqa: BLE001 (a value at the edge of a support; the bound without it is stricter)
                continue
            # The largest of all rows: rounding of inputs far from order 1 moves some rows by much and others not.
            for name, values in self.expected.items():
                by = (moved.get(name, values) - values).abs().nan_to_num(0.0, 0.0, 0.0).amax()
                effect[name] = torch.maximum(effect[name], by)
        return {name: slack + INSIDE * effect[name] for name, slack in self._rounding().items()}

    def _compare(
        self,
        found: Terms,
        rows: Int[Tensor, " B"],
        complaint: Callable[[str, str, str], str] | None,
        expected: Terms | None = None,
    ) -> bool:
        """Whether a run's numbers at these rows are the expected ones; refuses with this complaint, if any."""
        for name, values in found.items():
            own = (expected or self.expected)[name][rows]
            apart = (values - own).abs() > self.slack[name][rows]
            # Infinities and NaN have no distance.
            apart = torch.where(values.isfinite() & own.isfinite(), apart, ~_same(values, own))
            if bool(apart.any()):
                if complaint is not None:
                    worst = int(torch.where(apart, rows, len(self.x)).argmin())
                    numbers = f"row {int(rows[worst])} has {float(own[worst]):.6g} and {float(values[worst]):.6g}"
                    raise ValueError(complaint(f"site '{name}' of the {self.kind}", numbers, self._advice()))
                return False
        return True

    def _coupled(self, site: str, numbers: str, advice: str) -> str:
        return (
            f"{site}: expected a log density that depends on the datapoint's own row alone; {numbers} nats with other "
            f"rows beside it, or in another place.{advice}"
        )

    def _mixed_up(self, site: str, numbers: str, advice: str) -> str:  # noqa: ARG002
        return (
            f"{site}: expected the same log density whether z is (B, D), one latent vector a datapoint, or (S, B, D), "
            f"S of them; {numbers} nats. {_FROM_THE_RIGHT}"
        )

    def _advice(self) -> str:
        """The likely cause: batch norm only where there is one that looks at the batch."""
        for root in modules_of(self.program):
            for name, module in root.named_modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
                    module.training or module.running_mean is None
                ):
                    bare = module.running_mean is None
                    state = "without running statistics: use" if bare else "in train mode: call .eval(), or use"
                    return f" {type(module).__name__} '{name}' normalises over the batch ({state} LayerNorm instead)."
        return (
            " Look for a sum, mean, softmax, sort or normalisation over the batch (dim=0, or no dim at all), and for "
            "numbers taken by position in the batch: each row must be computed from itself."
        )


_FROM_THE_RIGHT = (
    "Measurements and importance weights run many latent vectors at once. Count dimensions from the right: dim=-1 for "
    "dim=1, z.mean(-1) for z.mean(1), reshape(*z.shape[:-1], K) for view(-1, K) and flatten(1)."
)


def _hidden_randomness(site: str, numbers: str, advice: str) -> str:  # noqa: ARG001
    return (
        f"{site}: expected the same log density at the same values; {numbers} nats in two runs on the same rows. Look "
        "for random numbers outside pyro.sample (torch.randn, NumPy, dropout that eval() does not turn off, such as "
        "functional dropout with training=True) and for state that changes from call to call; draw by pyro.sample, "
        "and use nn.Dropout."
    )


def _describe(q: Distribution, z: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """A number for each member of q: its log density at z, or that of a draw together with the draw."""
    try:
        return q.log_prob(z)
    except NotImplementedError:
        noise = torch.linspace(-1, 1, noise_size(q), dtype=z.dtype, device=z.device)
        draw, log_q = from_noise(q, noise.expand(1, len(z), -1))
        return log_q[0] + draw[0].sum(-1)


def _at(terms: Terms, where: Bool[Tensor, " B"]) -> Terms:
    return {name: values[where] for name, values in terms.items()}


def _same(one: Tensor, other: Tensor) -> Bool[Tensor, " B"]:
    return (one == other) | (one.isnan() & other.isnan())


def _precision(program: Program, *values: Tensor) -> float:
    """Rounding of a sum over a row's values, relative, in the coarsest type that the program computes in."""
    weights = (weight for root in modules_of(program) for weight in root.parameters())
    dtypes = {value.dtype for value in (*values, *weights) if value.is_floating_point()}
    if dtypes <= {torch.float64}:
        return 1e-9
    if not dtypes <= {torch.float64, torch.float32}:
        return 3e-2
    # Matrix products of reduced precision, as GPUs offer them, have ten bits.
    reduced = values[0].is_cuda or torch.get_float32_matmul_precision() != "highest"
    return 2e-3 if reduced else 2e-5


def _rounded(values: Tensor, half: int) -> Tensor:
    """The values, about half of them larger in size by their rounding: one half for 0, the others for 1."""
    if values.dtype not in ROUNDING:
        return values
    # Always away from zero: a whole number that is cut down to an integer stays the same.
    generator = torch.Generator().manual_seed(0)
    some = (torch.randint(2, values.shape, generator=generator) == half).to(values)
    return values * (1 + ROUNDING[values.dtype] * some)


def _generators() -> tuple[Any, ...]:
    """What tells whether random numbers were drawn from a global generator."""
    states = random_states()
    tensors = [states["torch"], *states["cuda"]]
    return (*(state.numpy().tobytes() for state in tensors), repr(states["numpy"]), states["python"])


@contextmanager
def _left_alone(*programs: Program | None) -> Iterator[None]:
    """Put generators, small buffers and plain attributes of modules back as they were."""
    modules = [module for root in modules_of(*programs) for module in root.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None and buffer.numel() <= LARGEST_STATE
    ]
    plain = [
        (module, {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str)})
        for module in modules
    ]
    states = random_states()
    try:
        yield
    finally:
        set_random_states(states)
        for module, name, buffer, before in buffers:
            module._buffers[name] = buffer
            if not torch.equal(buffer, before):
                buffer.copy_(before)
        for module, attributes in plain:
            vars(module).update(attributes)


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]
