"""Batches end where the rows say, and keys are unique."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.readers import batches
from pipelines.readers.batches import START, BatchBuilder, BatchMerger, KeyRegister, Origin

SCHEMA = pa.schema([*START, ("text", pa.string())])
ROWS = st.lists(st.integers(0, 12), max_size=40)


def build(sizes: list[int]) -> list[pa.RecordBatch]:
    builder, made = BatchBuilder(SCHEMA), []
    for number, size in enumerate(sizes):
        builder.add(str(number), Origin("p", number, None, None), None, ("x" * size,), size)
        if builder.full:
            made.append(builder.take())
    return [*made, builder.take()] if builder else made


@given(sizes=ROWS, pieces=st.lists(st.integers(1, 9), min_size=1, max_size=9))
@settings(max_examples=60)
def test_merged_batches_end_where_built_ones_do(sizes, pieces):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "BATCH_BYTES", 20)
        patch.setattr(batches, "BATCH_ROWS", 5)
        built = build(sizes)
        table = pa.Table.from_batches(built, SCHEMA)
        merger, merged, at = BatchMerger(), [], 0
        while at < len(sizes):
            step = pieces[at % len(pieces)]
            piece = pa.RecordBatch.from_pylist(table.slice(at, step).to_pylist(), SCHEMA)
            merged += merger.add(piece, np.array(sizes[at : at + step], np.int64))
            at += step
        if merger:
            merged.append(merger.take())
    assert merged == built
    assert sum(batch.num_rows for batch in built) == len(sizes)
    assert all(batch.num_rows <= 5 for batch in built)
    assert all(sum(sizes_of(batch)[:-1]) < 20 for batch in built)


def sizes_of(batch: pa.RecordBatch) -> list[int]:
    return [len(text) for text in batch.column("text").to_pylist()]


@given(st.lists(st.sampled_from(["a", "b", "a#2", "a#2#2", "a#3"]), max_size=30))
@settings(max_examples=100)
def test_registered_keys_are_unique_and_new_ones_stay_as_they_are(keys):
    register, seen = KeyRegister(), set()
    for key in keys:
        name = register.unique(key)
        assert name not in seen
        assert name == key or key in seen
        assert name.startswith(key)
        seen.add(name)
