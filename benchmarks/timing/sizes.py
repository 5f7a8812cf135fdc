"""How much the benchmark measures: at full size, and at a tiny one that only shows that it runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured, and how often.

    Attributes:
        datasets: of the E-step race; the first trains the table and the annealed model too.
        architectures: widths P, hidden, D of the training table; the encoder is P to D, the decoder mirrors it.
        steps: by batch size, the steps of a timing block and how many rounds of blocks there are.
        tiny: widths of the net at which fixed costs are all there is.
        tiny_steps: steps of its blocks.
        tiny_rounds: rounds of them.
        hidden: hidden widths of the model of the E-step race and of annealing.
        num_latents: its D.
        epochs: that it is trained for.
        num_train: images it is trained on at most.
        precision_seeds: fits in each precision whose held-out ELBOs are compared.
        num_images: held-out images of the race.
        num_tune: training images that the rival's step size is chosen on.
        rates: step sizes that are tried.
        thresholds: nats, mean gap to the reference optimum.
        adam_steps: the rival's budgets, ascending.
        num_score_draws: draws, in antithetic pairs, that score a result.
        race_rounds: rounds of the race, in each of which every method runs once a threshold.
        slow_cap: seconds that the slow dynamics may take, on the first data set.
        longer: how many times longer the two runs behind the reference optimum are.
        num_sweep: datapoints of variational EM's sweep.
        num_data: simulated datapoints of the annealing part.
        num_chains: chains of each.
        rate_temperatures: temperatures of a timing block of leapfrogs.
        rate_rounds: rounds of them in each process.
        rate_processes: processes.
        width: nats, the mean width of the two bounds that is to be reached.
        temperatures: by route from start to posterior, numbers of temperatures that are tried, ascending.
        width_rounds: rounds of the runs that reach it.
        backend: of `torch.compile`; "inductor" but where only the way there is tried.
        compile: of this library's settings.
    """

    datasets: tuple[str, ...] = ("mnist", "fashion-mnist")
    architectures: tuple[tuple[int, ...], ...] = ((784, 400, 20), (784, 200, 200, 50))
    steps: tuple[tuple[int, int, int], ...] = ((1, 150, 5), (16, 100, 3), (128, 50, 9), (1024, 8, 3))
    tiny: tuple[int, ...] = (4, 2, 1)
    tiny_steps: int = 150
    tiny_rounds: int = 5
    hidden: tuple[int, ...] = (200, 200)
    num_latents: int = 50
    epochs: int = 10
    num_train: int = 50000
    precision_seeds: int = 3
    num_images: int = 1000
    num_tune: int = 256
    rates: tuple[float, ...] = (0.02, 0.04, 0.08)
    thresholds: tuple[float, ...] = (0.05, 0.01)
    adam_steps: tuple[int, ...] = (50, 100, 200, 400)
    num_score_draws: int = 32
    race_rounds: int = 5
    slow_cap: float = 60.0
    longer: int = 10
    num_sweep: int = 60000
    num_data: int = 64
    num_chains: int = 16
    rate_temperatures: int = 30
    rate_rounds: int = 3
    rate_processes: int = 3
    width: float = 0.5
    temperatures: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("encoder", (10, 12, 14, 16, 20, 24, 32, 48, 64)),
        ("encoder, bf16 forces", (10, 12, 14, 16, 20, 24, 32, 48, 64)),
        ("q*", (4, 6, 8, 10, 12, 16, 24, 32)),
        ("prior", (250, 300, 350, 400, 500, 700)),
        ("prior, as published", (300, 350, 400, 500, 700)),
    )
    width_rounds: int = 2
    backend: str = "inductor"
    compile: bool = True

    def describe(self) -> dict[str, Any]:
        """As plain values, for a record."""
        return asdict(self)


FULL = Sizes()

# Bundled images, two steps of everything, and no compiler.
TINY = Sizes(
    datasets=("digits",),
    architectures=((64, 16, 4),),
    steps=((1, 3, 2), (128, 2, 2)),
    tiny_steps=3,
    tiny_rounds=2,
    hidden=(16,),
    num_latents=4,
    epochs=2,
    num_train=600,
    precision_seeds=2,
    num_images=20,
    num_tune=20,
    rates=(0.02, 0.08),
    adam_steps=(4, 16, 64),
    num_score_draws=32,
    race_rounds=1,
    slow_cap=2.0,
    longer=2,
    num_sweep=600,
    num_data=8,
    num_chains=4,
    rate_temperatures=4,
    rate_rounds=1,
    rate_processes=1,
    temperatures=(("encoder", (2, 8)), ("q*", (2, 8)), ("prior, as published", (4, 32))),
    width_rounds=1,
    backend="aot_eager",
    compile=False,
)
