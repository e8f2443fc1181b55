"""Decompression: all bytes in order, the places of frames, and errors as pieces."""

import gzip
import io
import random
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.readers.compression import Piece, decompress
from pipelines.readers.reader import HashingFile

SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
PRESS = {".gz": lambda data: gzip.compress(data, mtime=0), ".zst": zstandard.compress}


def pieces(data: bytes, ending: str, resume_at: bytes = b"") -> list[Piece]:
    return list(decompress(HashingFile(io.BytesIO(data)), f"x{ending}", resume_at))


def noise(seed: int, size: int = 30_000) -> bytes:
    return b"WARC/%d " % seed + random.Random(seed).randbytes(size)


@given(parts=st.lists(st.binary(max_size=300), max_size=6), ending=st.sampled_from([".gz", ".zst"]))
@settings(max_examples=60)
def test_frames_give_their_bytes_and_say_where_they_begin(parts, ending):
    frames = [PRESS[ending](part) for part in parts]
    found = pieces(b"".join(frames), ending)
    assert b"".join(piece.data for piece in found) == b"".join(parts)
    starts = [sum(map(len, frames[:n])) for n in range(len(frames) + 1)]
    assert [piece.frame for piece in found if piece.frame is not None] == starts
    assert all(piece.error is None for piece in found)


def test_plain_file_is_read_as_it_is():
    data = noise(1, 600_000)
    assert b"".join(piece.data for piece in pieces(data, ".jsonl")) == data


def test_zeros_between_gzip_members_and_skippable_zstd_frames_are_passed_over():
    one, two = noise(1), noise(2)
    data = gzip.compress(one) + bytes(70_000) + gzip.compress(two) + bytes(3)
    assert b"".join(p.data for p in pieces(data, ".gz")) == one + two
    data = zstandard.compress(one) + SKIPPABLE + zstandard.compress(two)
    assert b"".join(p.data for p in pieces(data, ".zst")) == one + two


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_frame_without_an_end_gives_its_bytes_and_then_an_error(ending):
    one, two = noise(1), noise(2)
    press = PRESS[ending]
    found = pieces(press(one) + press(two)[:-20], ending)
    assert found[-1].error == (
        f"truncated: the last {'gzip' if ending == '.gz' else 'zstd'} frame, "
        f"at byte {len(press(one))}, has no end"
    )
    data = b"".join(piece.data for piece in found)
    assert (one + two).startswith(data)
    assert len(data) >= len(one)


@pytest.mark.parametrize("place", [0, 3, 15_000, -3])
def test_reading_goes_on_at_the_next_frame_that_begins_as_it_should(place):
    frames = [gzip.compress(noise(n), mtime=0) for n in range(4)]
    decoy = gzip.compress(b"not a record", mtime=0)
    broken = bytearray(frames[1])
    broken[place] ^= 0xFF
    found = pieces(frames[0] + bytes(broken) + decoy + frames[2] + frames[3], ".gz", b"WARC/")
    errors = [n for n, piece in enumerate(found) if piece.error is not None]
    assert len(errors) == 1
    assert found[errors[0]].error.startswith(f"broken_compression: frame at byte {len(frames[0])}")
    after = b"".join(piece.data for piece in found[errors[0] :])
    assert after.endswith(noise(2) + noise(3))


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_hostile_file_comes_in_small_pieces(ending):
    size = 100 << 20
    compressor = zlib.compressobj(9, wbits=31)
    bomb = (
        b"".join(compressor.compress(bytes(1 << 20)) for _ in range(100)) + compressor.flush()
        if ending == ".gz"
        else zstandard.compress(bytes(size))
    )
    found = [len(piece.data) for piece in decompress(HashingFile(io.BytesIO(bomb)), ending, b"")]
    assert sum(found) == size
    assert max(found) < 10 << 20


@pytest.mark.parametrize("data", [b"", b"\x1f", b"\x1f\x8b\x08", b"junk that is no gzip"])
def test_file_that_holds_no_frame_says_so_or_is_empty(data):
    found = pieces(data, ".gz")
    assert b"".join(piece.data for piece in found) == b""
    assert any(piece.error for piece in found) == bool(data)
