import gzip
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from weit.tasks.idx import read_idx


def idx(array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def write(folder, content):
    path = folder / "some.gz"
    path.write_bytes(gzip.compress(content))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("idx")


@given(array=arrays(np.uint8, array_shapes(max_dims=3, max_side=5)))
def test_reads_what_was_written(folder, array):
    found = read_idx(write(folder, idx(array)))
    np.testing.assert_array_equal(found, array, strict=True)


@given(data=st.data())
def test_cut_anywhere_it_is_one_error(folder, data):
    content = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    cut = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(ValueError, match=r"some\.gz (is|should hold)"):
        read_idx(write(folder, content[:cut]))


@given(cut=st.integers(0, 40))
def test_a_cut_gzip_stream_is_one_error(folder, cut):
    content = gzip.compress(idx(np.arange(24, dtype=np.uint8)))
    path = folder / "some.gz"
    path.write_bytes(content[: min(cut, len(content) - 1)])
    with pytest.raises(ValueError, match=r"some\.gz"):
        read_idx(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\x00\x0d\x01" + struct.pack(">I", 1) + b"1234", "not an IDX file of unsigned bytes"),
        (b"\x89PNG....", "not an IDX file of unsigned bytes"),
        (b"\x00\x00\x08\x00", "not an IDX file of unsigned bytes"),
        (b"\x00\x00\x08\x02" + struct.pack(">II", 1 << 31, 1 << 31), "not a data set this reads"),
        (idx(np.zeros(3, np.uint8)) + b"x", "should hold 3 bytes of shape \\(3,\\), but holds more than 3"),
    ],
)
def test_foreign_content_is_named(folder, content, message):
    with pytest.raises(ValueError, match=message):
        read_idx(write(folder, content))


def test_no_gzip_and_no_file(folder):
    plain = folder / "plain"
    plain.write_bytes(idx(np.zeros(3, np.uint8)))
    with pytest.raises(ValueError, match="plain is damaged or not gzip"):
        read_idx(plain)
    with pytest.raises(FileNotFoundError):
        read_idx(folder / "nowhere")
