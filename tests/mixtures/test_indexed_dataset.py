import struct
from pathlib import Path

import numpy as np
import pytest

from mixtures.indexed_dataset import read_index, write_index


def read_as_megatron(path: Path) -> tuple[type, np.ndarray, np.ndarray, np.ndarray]:
    """Reads an .idx by the published layout, apart from our own reader."""
    with path.open("rb") as stream:
        assert stream.read(9) == b"MMIDIDX\x00\x00"
        assert struct.unpack("<Q", stream.read(8)) == (1,)
        (code,) = struct.unpack("<B", stream.read(1))
        (sequences,) = struct.unpack("<Q", stream.read(8))
        (documents,) = struct.unpack("<Q", stream.read(8))
        lengths = np.fromfile(stream, np.int32, sequences)
        pointers = np.fromfile(stream, np.int64, sequences)
        borders = np.fromfile(stream, np.int64, documents)
        assert not stream.read()
    return {4: np.int32, 8: np.uint16}[code], lengths, pointers, borders


@pytest.mark.parametrize("dtype", [np.dtype(np.uint16), np.dtype(np.int32)])
@pytest.mark.parametrize("lengths", [[], [1], [3, 1, 70_000, 2]])
def test_write_index_is_what_megatron_reads(
    tmp_path: Path, dtype: np.dtype, lengths: list[int]
) -> None:
    write_index(tmp_path / "a.idx", dtype, np.array(lengths, np.int32))
    found, found_lengths, pointers, borders = read_as_megatron(tmp_path / "a.idx")
    assert found == dtype
    assert found_lengths.tolist() == lengths
    assert pointers.tolist() == [sum(lengths[:i]) * dtype.itemsize for i in range(len(lengths))]
    assert borders.tolist() == list(range(len(lengths) + 1))
    ours = read_index(tmp_path / "a.idx")
    assert ours.dtype == dtype
    assert ours.lengths.tolist() == lengths
    assert ours.pointers.tolist() == pointers.tolist()
    assert ours.borders.tolist() == borders.tolist()


@pytest.mark.parametrize("size", [2, 4])
def test_write_index_gives_the_bytes_of_datatrove(tmp_path: Path, size: int) -> None:
    megatron = pytest.importorskip("datatrove.pipeline.tokens.megatron_tokenizer")
    documents = [[5, 6, 2], [2], list(range(300, 900)), [7, 2]]
    file = megatron.MegatronTokenizedFile(str(tmp_path), "theirs", token_size=size)
    for document in documents:
        file.write(document)
    file.close()
    dtype = np.dtype({2: np.uint16, 4: np.int32}[size])
    write_index(tmp_path / "ours.idx", dtype, np.array([len(d) for d in documents], np.int32))
    assert (tmp_path / "ours.idx").read_bytes() == (tmp_path / "theirs.idx").read_bytes()


def test_read_index_of_another_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.idx").write_bytes(b"PAR1 and so on and so forth, longer than a header")
    with pytest.raises(ValueError, match="no Megatron index"):
        read_index(tmp_path / "a.idx")
    (tmp_path / "b.idx").write_bytes(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 2, 8, 0, 1))
    with pytest.raises(ValueError, match="version 2"):
        read_index(tmp_path / "b.idx")
