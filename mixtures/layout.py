"""Names and columns of the files of token datasets and mixtures, for those who write and read."""

import pyarrow as pa

MANIFEST = "manifest.json"

TOKENS_FILE = "tokens-{:05d}.bin"
INDEX_FILE = "tokens-{:05d}.idx"
SIDECAR_FILE = "tokens-{:05d}.parquet"
MASK_FILE = "tokens-{:05d}.mask"  # of conversations: a byte a token, 1 where it is trained on

SIDECAR_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # document
        ("start", pa.int64()),  # its first token in the .bin
        ("length", pa.int32()),  # tokens, the end-of-document token included
        ("bytes", pa.int64()),  # of its text in UTF-8; of a conversation, what is trained on
    ]
)

MASKED = "masked.json"
MASKED_FILE = "masked-{:05d}.parquet"

MASKED_SCHEMA = pa.schema(
    [
        ("version", pa.int32()),  # of masked.json, from 1 on, that brought it
        ("shard", pa.int32()),
        ("id", pa.string()),  # document
        ("start", pa.int64()),  # first token in the shard
        ("length", pa.int32()),  # tokens, the end-of-document token included
    ]
)

LOCATIONS = "plan/locations.npy"
LENGTHS = "plan/lengths.npy"
PACKS = "plan/packs.npy"
HOLDOUT = "holdout.parquet"

HOLDOUT_SCHEMA = pa.schema(
    [
        ("part", pa.string()),
        ("id", pa.string()),  # document
        ("shard", pa.int32()),  # of the part's token dataset
        ("start", pa.int64()),  # first token in the shard
        ("length", pa.int32()),  # tokens, the end-of-document token included
        ("bytes", pa.int64()),  # as in the sidecar
    ]
)
