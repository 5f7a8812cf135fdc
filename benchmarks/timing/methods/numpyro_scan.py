"""NumPyro's `SVI` with `Trace_ELBO`, all steps of a block in one compiled `lax.scan`, batches gathered inside it."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro.infer import SVI, Trace_ELBO

from timing.protocol import Cell, Pipe, run_blocks


def versions() -> dict[str, str]:
    """Of what is used."""
    return {"jax": jax.__version__, "numpyro": numpyro.__version__}


def dense(name: str, x: jax.Array, *widths: int) -> jax.Array:
    """Affine layers with ELU between them."""
    pairs = list(itertools.pairwise(widths))
    for number, (before, after) in enumerate(pairs):
        scale = before**-0.5
        weight = numpyro.param(
            f"{name}.{number}.weight", lambda key, s=(before, after), c=scale: c * random.normal(key, s)
        )
        x = x @ weight + numpyro.param(f"{name}.{number}.bias", jnp.zeros(after))
        x = jax.nn.elu(x) if number + 1 < len(pairs) else x
    return x


def run(cell: Cell, pipe: Pipe) -> None:
    """Serve timing blocks."""
    *seen, num_latents = cell.widths
    rows = np.load(cell.data, mmap_mode="r")[: cell.steps * cell.batch]
    x = jnp.asarray(np.array(rows, dtype=np.float32))

    def model(batch: jax.Array) -> None:
        with numpyro.plate("data", len(batch)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros((len(batch), num_latents)), 1.0).to_event(1))
            logits = dense("decoder", z, num_latents, *reversed(seen))
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=batch)

    def guide(batch: jax.Array) -> None:
        loc, log_scale = jnp.split(dense("encoder", batch, *seen, 2 * num_latents), 2, -1)
        with numpyro.plate("data", len(batch)):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    svi = SVI(model, guide, numpyro.optim.Adam(cell.lr), Trace_ELBO())
    state = svi.init(random.PRNGKey(0), x[: cell.batch])

    @jax.jit
    def scan(state, key):  # noqa: ANN001, ANN202 (NumPyro's own state)
        index = random.permutation(key, len(x)).reshape(cell.steps, cell.batch)
        return lax.scan(lambda state, chosen: svi.update(state, x[chosen]), state, index)

    number = 0

    def block() -> float:
        nonlocal state, number
        number += 1
        state, losses = scan(state, random.PRNGKey(number))
        return float(losses.sum()) / len(x)

    run_blocks(cell, pipe, block)
