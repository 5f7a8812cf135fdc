"""Files that a stranger sent: nothing in them is executed, and nothing they promise is believed."""

import gzip
import io
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest

from pyro_vae.cli import main
from pyro_vae.data import arrays, load, tables

GRAY = np.random.default_rng(0).integers(0, 256, (50, 6)).astype(np.uint8)


class Command:
    """What a pickle can do to whoever reads it."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.system, (f"touch {self.folder / 'executed'}",)


def header(shape, descr="|u1", by_column=False):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": by_column, "shape": shape})
    return stream.getvalue()


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as written:
        for name, content in members.items():
            written.writestr(name.replace("__", "/"), content)


def pickled_member(path):
    content = io.BytesIO()
    np.save(content, np.array([Command(path.parent)] * 50), allow_pickle=True)
    archive(path, **{"x.npy": content.getvalue()})


def bare_member(path):
    archive(path, **{"x.npy": pickle.dumps(Command(path.parent))})


def pickled_labels(path):
    np.savez(path, x=GRAY, y=np.array([Command(path.parent)] * 50))


def other_compression(path):
    """That of LZMA unpacks to seven thousand times as much, and as much at once as it likes."""
    content = io.BytesIO()
    np.save(content, GRAY)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as written:
        written.writestr("x.npy", content.getvalue())


def encrypted(path):
    np.savez(path, x=GRAY)
    content = bytearray(path.read_bytes())
    for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(magic) + place] |= 1
    path.write_bytes(content)


def wrong_checksum(path):
    np.savez(path, x=GRAY)
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)


def outside(path):
    np.savez(path, **{"../x": GRAY, "/tmp/x": GRAY, "a\nb": GRAY})


def nested(path):
    """A header that Python's parser would have to recurse through."""
    text = b"(" * 9000
    archive(path, **{"x.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text})


HOSTILE = {
    "a pickle that runs a command": (pickled_member, "x holds pickled Python objects, which could run code"),
    "a bare pickle": (bare_member, "not a NumPy file"),
    "a pickle as labels": (pickled_labels, "y holds pickled Python objects, which could run code"),
    "a shape larger than its values": (
        lambda path: archive(path, **{"x.npy": header((10**6, 784)) + bytes(50)}),
        r"x.npy: its header promises 747.7 MiB of values, of which it holds 50 bytes",
    ),
    "a shape larger than any memory": (
        lambda path: archive(path, **{"x.npy": header((2**40, 2**40)) + bytes(50)}),
        "its header promises .* TiB",
    ),
    "a negative shape": (lambda path: archive(path, **{"x.npy": header((-1, 6)) + bytes(50)}), r"shape \(-1, 6\)"),
    "values of no bytes": (lambda path: archive(path, **{"x.npy": header((10**9, 6), "|S0")}), "type"),
    "a header without end": (nested, "cannot be read"),
    "another compression": (other_compression, "compressed in a way that NumPy does not use"),
    "a password": (encrypted, "cannot be read .*password"),
    "a wrong checksum": (wrong_checksum, "cannot be read .*CRC"),
    "names that lead outside": (outside, r"expected one array x, .* the file has ../x, /tmp/x, 'a\\nb'"),
    "no members": (lambda path: archive(path), "the file has nothing"),
}


@pytest.mark.parametrize(("write", "message"), HOSTILE.values(), ids=HOSTILE)
def test_archives(tmp_path, monkeypatch, write, message, capsys):
    path = tmp_path / "data.npz"
    write(path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    # The command line says the same, and no traceback.
    assert main(["fit", f"--data={path}", f"--out={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(path) in said
    assert {entry.name for entry in tmp_path.iterdir()} == {"data.npz"}, "something was executed or unpacked"


BY_ITSELF = {
    "promises too much": (header((10**6, 784)) + bytes(50), "promises 747.7 MiB of values, of which it holds 50 bytes"),
    "promises more than there are bytes": (header((2**40, 2**40)) + bytes(50), "its header promises .* TiB"),
    "by column": (header((10**6, 784), by_column=True) + bytes(50), "promises 747.7 MiB"),
    "negative": (header((-5, -10)) + bytes(50), r"shape \(-5, -10\)"),
    "a header longer than allowed": (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + bytes(100), "cannot be read"),
    "version 9": (b"\x93NUMPY\x09\x00" + bytes(100), "cannot be read"),
}


@pytest.mark.parametrize("stream", [None, True, False])
@pytest.mark.parametrize(("content", "message"), BY_ITSELF.values(), ids=BY_ITSELF)
def test_headers_that_lie(tmp_path, content, message, stream):
    path = tmp_path / "data.npy"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as error:
            load(path, stream=stream)
        assert tracemalloc.get_traced_memory()[1] < 2**22, "memory was taken for what is not there"
    finally:
        tracemalloc.stop()
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("stream", [None, True, False])
def test_a_file_cut_anywhere(tmp_path, stream):
    path = tmp_path / "data.npy"
    np.save(path, GRAY)
    content = path.read_bytes()
    for size in (0, 1, 5, 6, 8, 9, 10, 60, 127, 128, 129, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"data\.npy cannot be read") as error:
            load(path, stream=stream)
        assert "\n" not in str(error.value)


def test_an_archive_cut_anywhere(tmp_path):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=GRAY)
    content = path.read_bytes()
    for size in (*range(0, len(content), 37), len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"data\.npz cannot be read") as error:
            load(path)
        assert "\n" not in str(error.value)


def bomb(path, num_bytes, *, says=None):
    """A member of zeros, compressed a thousand times: a piece that ends at a byte, again and again."""
    piece = 2**20
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    begin = packer.compress(header((num_bytes // 784, 784))) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(piece)) + packer.flush(zlib.Z_FULL_FLUSH)
    packed = begin + again * (num_bytes // piece) + packer.flush()
    says = says or len(header((num_bytes // 784, 784))) + num_bytes // 784 * 784
    # What zipfile would have to pack by itself.
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 8, 0, 33, 0, len(packed), min(says, 2**32 - 2), 5, 0)
    central = struct.pack(
        "<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 8, 0, 33, 0, len(packed), min(says, 2**32 - 2), 5, 0, 0, 0, 0, 0, 0
    )
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(central) + 5, len(local) + 5 + len(packed), 0)
    path.write_bytes(local + b"x.npy" + packed + central + b"x.npy" + end)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    """Three GiB in three MiB, where a GiB is free."""
    monkeypatch.setattr(arrays, "available_memory", lambda: 2**30)
    bomb(tmp_path / "data.npz", 3 * 2**30)
    assert (tmp_path / "data.npz").stat().st_size < 2**22
    tracemalloc.start()
    try:
        message = r"data\.npz unpacks to 3.0 GiB, and 1.0 GiB of memory are free: expected data that fit; save x alone"
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "data.npz")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_bomb_that_says_it_is_small_is_unpacked_no_further(tmp_path, monkeypatch):
    bomb(tmp_path / "data.npz", 2**28, says=len(header((1, 1))) + 2**20)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"data\.npz cannot be read"):
            load(tmp_path / "data.npz")
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_a_whole_file_larger_than_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "available_memory", lambda: 200)
    np.save(tmp_path / "data.npy", GRAY)
    with pytest.raises(ValueError, match=r"data\.npy holds 300 bytes, and 200 bytes .*leave stream=False out"):
        load(tmp_path / "data.npy", stream=False)
    assert len(load(tmp_path / "data.npy", stream=True).train) == 35


def test_a_table_of_a_thousand_million_rows_in_a_few_bytes(tmp_path, monkeypatch):
    """One value, repeated."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({name: pyarrow.array(np.zeros(200_000)) for name in "abcdef"})
    parquet.write_table(table, tmp_path / "data.parquet")
    assert (tmp_path / "data.parquet").stat().st_size < 2**14
    monkeypatch.setattr(arrays, "available_memory", lambda: 2**20)
    message = r"data\.parquet unpacks to 9.2 MiB, and 1.0 MiB of memory are free: expected data that fit; save fewer"
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "data.parquet")
    assert tables.Refused is arrays.Refused


TABLES = {
    "zeros": bytes(500),
    "a quote without end": b'a,b\n"1,2\n' + b"3,4\n" * 50,
    "text": b"a,b\n1,x\n2,y\n",
    "more columns than names": b"a,b\n" + b"1,2,3,4\n" * 3,
    "a number beyond any": b"a,b\n" + b"1,1e999\n" * 20,
    "a formula": b"a,b\n" + b"=cmd|'/C calc'!A0,2\n" * 20,
    "a gzip file": gzip.compress(b"a,b\n1,2\n"),
}


@pytest.mark.parametrize("content", TABLES.values(), ids=TABLES)
def test_tables(tmp_path, content):
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"data\.csv") as error:
        load(path)
    assert "\n" not in str(error.value)


def test_what_is_no_file(tmp_path):
    """Nothing waits for somebody who writes."""
    for suffix in ("npy", "npz", "csv"):
        os.mkfifo(tmp_path / f"data.{suffix}")
        with pytest.raises(ValueError, match=f"data.{suffix} cannot be read .it is no regular file"):
            load(tmp_path / f"data.{suffix}")
