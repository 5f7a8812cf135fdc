import errno
import os
import tempfile

import pytest
import torch

from inference import MeanField, Training, fit_em, rows
from inference.processes import Shards
from inference.rows import RowAdam
from inference.table import Table
from pyro_vae.linear import LinearGaussian


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.99), (0.0, 0.5)], ids=str)
def test_all_rows_visited_is_torch_adam(betas):
    table = torch.randn(4, 3)
    dense = table.clone().requires_grad_()
    reference = torch.optim.Adam([dense], lr=0.1, betas=betas)
    optimizer = RowAdam(4, 3, betas=betas, like=table)
    index = torch.arange(4)
    for _ in range(20):
        grad = torch.randn(4, 3)
        dense.grad = grad
        reference.step()
        table[index] = optimizer.step(table[index], grad, index, lr=0.1)
        torch.testing.assert_close(table, dense.detach(), rtol=1e-10, atol=1e-12)


def test_each_row_is_an_adam_of_its_own():
    """Rows visited at different times move as if each had a torch.optim.Adam to itself."""
    start = torch.randn(5, 3)
    table = start.clone()
    optimizer = RowAdam(5, 3, like=table)
    singles = [start[n].clone().requires_grad_() for n in range(5)]
    references = [torch.optim.Adam([row], lr=0.05) for row in singles]
    for _ in range(30):
        index = torch.randperm(5)[:2]
        grad = torch.randn(2, 3)
        table[index] = optimizer.step(table[index], grad, index, lr=0.05)
        for n, row_grad in zip(index.tolist(), grad, strict=True):
            singles[n].grad = row_grad
            references[n].step()
    torch.testing.assert_close(table, torch.stack(singles).detach(), rtol=1e-10, atol=1e-12)


def test_rows_outside_the_batch_do_not_move_where_dense_adam_moves_them():
    table = torch.zeros(4, 2)
    dense = table.clone().requires_grad_()
    reference = torch.optim.Adam([dense], lr=0.1)
    optimizer = RowAdam(4, 2, like=table)
    everyone, some = torch.arange(4), torch.tensor([0, 2])
    grad = torch.ones(4, 2)
    dense.grad = grad.clone()
    reference.step()
    table[everyone] = optimizer.step(table[everyone], grad, everyone, lr=0.1)
    before, dense_before = table.clone(), dense.detach().clone()
    state = [part[[1, 3]].clone() for part in (optimizer.first, optimizer.second, optimizer.count)]

    dense.grad = torch.zeros(4, 2)
    dense.grad[some] = 1.0
    reference.step()
    table[some] = optimizer.step(table[some], grad[some], some, lr=0.1)
    assert torch.equal(table[[1, 3]], before[[1, 3]])
    assert (table[some] != before[some]).all()
    for part, old in zip((optimizer.first, optimizer.second, optimizer.count), state, strict=True):
        assert torch.equal(part[[1, 3]], old)
    # Stale momentum: nobody asked these rows to move.
    assert ((dense.detach() - dense_before)[[1, 3]].abs() > 0.05).all()


def test_forget_starts_afresh():
    table = torch.randn(3, 2)
    optimizer = RowAdam(3, 2, like=table)
    index = torch.arange(3)
    for _ in range(5):
        optimizer.step(table, torch.randn(3, 2), index, lr=0.1)
    kept = optimizer.first[[0, 2]].clone()
    optimizer.forget(torch.tensor([1]))
    assert torch.equal(optimizer.first[[0, 2]], kept) and optimizer.count.flatten().tolist() == [5, 0, 5]
    grad = torch.randn(3, 2)
    moved = optimizer.step(table, grad, index, lr=0.1)
    fresh = RowAdam(3, 2, like=table).step(table, grad, index, lr=0.1)
    torch.testing.assert_close(moved[1], fresh[1])
    assert not torch.allclose(moved[0], fresh[0])


def test_a_step_size_for_each_row():
    table, grad, index = torch.randn(3, 2), torch.randn(3, 2), torch.arange(3)
    sizes = torch.tensor([[0.1], [0.0], [0.3]])
    together = RowAdam(3, 2, like=table).step(table, grad, index, lr=sizes)
    for n, lr in enumerate([0.1, 0.0, 0.3]):
        alone = RowAdam(3, 2, like=table).step(table, grad, index, lr=lr)
        torch.testing.assert_close(together[n], alone[n])
    assert torch.equal(together[1], table[1])


def test_state_follows_like_and_inputs_stay():
    table = torch.randn(3, 2, dtype=torch.float32)
    optimizer = RowAdam(3, 2, like=table)
    rows, grad = table.clone(), torch.randn(3, 2, dtype=torch.float32)
    moved = optimizer.step(rows, grad, torch.arange(3), lr=0.1)
    assert moved.dtype == optimizer.first.dtype == torch.float32
    assert torch.equal(rows, table)


def test_a_table_in_a_file_is_the_table(tmp_path, monkeypatch):
    """The same bits, whatever holds them, also after the fit; and no file that stays."""
    x = torch.randn(70, 2)

    def fit():
        exact = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
        training = Training(epochs=2, batch_size=16)
        return fit_em(exact.model, MeanField(2), x, training=training, validation=x[:9], seed=0)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    in_memory = fit()
    mapped, from_file = [], torch.from_file
    monkeypatch.setattr(torch, "from_file", lambda *args, **rest: mapped.append(args[0]) or from_file(*args, **rest))
    monkeypatch.setattr(rows, "SHARE", 0.0)
    on_disk = fit()
    # Rows, two moments and a count, of the training data and of the held-out ones.
    assert len(mapped) == 8 and all(name.startswith(str(tmp_path)) for name in mapped)
    assert torch.equal(on_disk.params, in_memory.params) and torch.equal(on_disk.elbo, in_memory.elbo)
    assert torch.equal(on_disk.elbo_validation, in_memory.elbo_validation)
    assert not list(tmp_path.iterdir())


def test_where_there_is_no_room_at_all(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rows, "SHARE", 0.0)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="4000 bytes of rows fit neither into memory .* Set TMPDIR to a folder") as error:
        rows.room_for_rows(100, 10, like=torch.zeros((), dtype=torch.float32))
    assert "\n" not in str(error.value)


def test_where_memory_is_unknown_or_suffices_it_is_taken(monkeypatch):
    monkeypatch.setattr(torch, "from_file", None)
    for room in (None, 8 * 8000):
        monkeypatch.setattr(rows, "available_memory", lambda room=room: room)
        assert rows.room_for_rows(100, 10, like=torch.zeros(())).shape == (100, 10)


def test_the_state_of_all_rows_is_no_copy_of_them():
    """A copy of the table would be as large as the table."""
    table = Table(None, torch.randn(6, 2), lr=0.1, num_particles=2, num_rows=6, shards=Shards())
    state = table.shard_state(0)
    assert state["params"].data_ptr() == table.params.data_ptr()
    other = Table(None, torch.zeros(6, 2), lr=0.1, num_particles=2, num_rows=6, shards=Shards())
    other.load_shard(0, state)
    assert torch.equal(other.params, table.params) and other.params.data_ptr() != table.params.data_ptr()
    # Of a part of them the whole would be written to the file.
    halves = Table(None, torch.randn(6, 2), lr=0.1, num_particles=2, num_rows=6, shards=Shards(2))
    assert halves.shard_state(1)["params"].untyped_storage().nbytes() == 3 * 2 * 8
