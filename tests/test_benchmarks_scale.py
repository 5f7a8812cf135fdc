"""What benchmarks/scale.py computes from its measurements, and that each of them runs."""

import json
import subprocess

import numpy as np
import pytest
import scale
import torch
from scaling import exponents, grid, picture, worker
from timing.machine import Probe


def test_exponents_are_slopes_of_logarithms():
    sizes = (10, 100, 1000)
    assert exponents.exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    # A fixed cost bends the line; the last two sizes know least of it.
    bent = [50 + size for size in sizes]
    assert exponents.exponent(sizes, bent) == pytest.approx(np.log(1050 / 60) / np.log(100))
    assert exponents.last_exponent(sizes, bent) == pytest.approx(np.log10(1050 / 150))
    assert exponents.exponent((10,), (1.0,)) is None and exponents.exponent(sizes, (1.0, 0.0, 2.0)) is None


MEASURED = {
    "em": {
        "N": [
            {"size": size, "seconds": 2.0, "cpu_seconds": size / 1e3, "mib": 100 + size / 1e4}
            for size in (10**4, 10**5, 10**6)
        ],
        "D": [{"size": size, "seconds": 2.0, "cpu_seconds": 2.0, "mib": 0.0} for size in (5, 10)],
    }
}


def test_the_table_and_the_picture(tmp_path):
    text = exponents.table(MEASURED)
    assert "| em | N | 10^4 / 10^5 / 10^6 | 2 / 2 / 2 | 10 / 100 / 1e+03 | 1.00 (1.00) | 101 / 110 / 200 |" in text
    assert "| em | D | 5 / 10 | 2 / 2 | 2 / 2 | 0.00 (0.00) | 0 / 0 | - (-) |" in text
    (first, second) = scale.exponents(MEASURED)
    assert first["cpu_seconds_all"] == pytest.approx(1.0) and second["mib_last_two"] is None
    picture.draw({"measured": MEASURED}, tmp_path / "scale.png")
    assert (tmp_path / "scale.png").stat().st_size > 10_000


def test_series_differ_along_their_axis_alone():
    for series in grid.FULL.values():
        for axis in series.values:
            points = [point.describe() for point in series.points(axis)]
            changed = {name for name in points[0] if len({point[name] for point in points}) > 1}
            assert changed == {grid.AXES[axis]}
            assert series.start in series.all_points()
            assert series.points(axis)[:-1] == series.without_largest().points(axis)


@pytest.mark.parametrize("engine", grid.ENGINES)
def test_every_engine_is_measured(engine, tmp_path, monkeypatch):
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr("inference.em.LAST_STEPS", 1)
    monkeypatch.setattr(
        scale, "measure", lambda engine, point, cache: worker.measure(engine, point, scale.data_file(point, cache))
    )
    tmp_path.joinpath("record.json").write_text(json.dumps({"measured": {"other": {}}, "machine": {"other": {}}}))
    record = scale.run(grid.TINY, [engine], tmp_path, tmp_path / "kept")
    found = record["measured"][engine]
    assert [row["size"] for row in found["N"]] == [64, 128] and [row["size"] for row in found["D"]] == [2, 3]
    assert all(row["seconds"] > 0 and row["mib_peak"] > 50 for rows in found.values() for row in rows)
    assert set(record["machine"]) == {"other", engine, "facts"} and json.dumps(record)


def test_a_measurement_has_a_process_of_its_own(tmp_path, monkeypatch):
    point = grid.TINY["em"].start
    found = scale.measure_engine("em", grid.Series(point, {"N": (64,)}), tmp_path, Probe())
    (row,) = found["N"]
    assert row["size"] == 64 and 0 <= row["mib"] <= row["mib_peak"] and row["cpu_seconds"] > 0
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nMemoryError: no room")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ValueError, match="em, Point.*failed: MemoryError: no room"):
        scale.measure("em", point, tmp_path)


def test_bits_are_rows_of_the_sizes_asked_for(tmp_path):
    file = scale.data_file(grid.Point(5000, 2, 2, 12), tmp_path)
    rows = np.load(file, mmap_mode="r")
    assert rows.shape == (5002, 12) and rows.dtype == np.uint8 and set(np.unique(rows)) == {0, 1}
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
