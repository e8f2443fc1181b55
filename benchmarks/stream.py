"""Tokens per CPU second of the stream beside numpy loops over the same mapped files.

    python -m benchmarks.stream [--tokens 256] [--repeats 5]

The peers: `slices` copies the same samples range by range from np.memmap, as Megatron's GPTDataset
does; `windows` copies whole rows and knows no documents: what a plain mmap loop can reach. All run
on one thread over files in page cache; ours and `slices` must give equal checksums, `windows` must
give that of the files.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import about, write_result
from mixtures.artifact import fingerprint
from mixtures.indexed_dataset import write_index
from mixtures.layout import INDEX_FILE, MANIFEST, SIDECAR_FILE, SIDECAR_SCHEMA, TOKENS_FILE
from mixtures.mixture import Mixture, Part, mix
from mixtures.packing import START_BITS
from mixtures.stream import Stream
from pipelines.dataset import write_json

SETTINGS = ((4096, 32), (8192, 16), (1024, 64))  # sequence length, batch size
SHARDS = 4


def write_tokens(folder: Path, num_tokens: int) -> np.ndarray:
    """Writes a token dataset of random ids whose documents are as long as web pages.

    Lengths are log-normal with a median of 490 and a mean of 900 tokens. Returns them.
    """
    folder.mkdir()
    rng = np.random.default_rng(0)
    shards, all_lengths = [], []
    for number in range(SHARDS):
        lengths = np.maximum(2, rng.lognormal(6.2, 1.1, num_tokens // SHARDS // 900)).astype("i4")
        tokens = rng.integers(3, 32_000, lengths.sum(), dtype=np.uint16)
        tokens[np.cumsum(lengths) - 1] = 2
        tokens.tofile(folder / TOKENS_FILE.format(number))
        write_index(folder / INDEX_FILE.format(number), tokens.dtype, lengths)
        ids = [f"{number:08x}{row:024x}" for row in range(len(lengths))]
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        sidecar = pa.table([ids, starts, lengths, lengths.astype("i8") * 4], schema=SIDECAR_SCHEMA)
        pq.write_table(sidecar, folder / SIDECAR_FILE.format(number))
        shards.append({"documents": len(lengths), "tokens": len(tokens)})
        all_lengths.append(lengths)
    request = {"vocabulary": "random"}
    manifest = {
        "request": request,
        "fingerprint": fingerprint([request, shards]),
        "dtype": "uint16",
        "vocabulary_size": 32_000,
        "end_of_document": 2,
        "documents": sum(shard["documents"] for shard in shards),
        "shards": shards,
    }
    write_json(folder / MANIFEST, manifest)
    return np.concatenate(all_lengths)


def run_stream(stream: Stream) -> Iterator[np.ndarray]:
    for batch in stream:
        yield batch.tokens


def prepare_slices(stream: Stream, shards: list[np.ndarray]) -> Callable[[], Iterator[np.ndarray]]:
    """Returns a loop over the samples of the stream in numpy alone, their places looked up."""
    plan, width = stream.plan, stream.plan.sequence_length + 1
    num_samples = stream.num_samples // stream.batch_size * stream.batch_size
    parts, _, packs = plan.schedule.locate(np.arange(num_samples))
    packs = (plan.first_packs[parts] + packs).tolist()
    shard_of = ((plan.locations >> np.uint64(START_BITS)) & np.uint64((1 << 20) - 1)).tolist()
    first = (plan.locations & np.uint64((1 << START_BITS) - 1)).tolist()
    lengths, first_pieces = plan.lengths.tolist(), plan.packs.tolist()

    def run() -> Iterator[np.ndarray]:
        for start in range(0, len(packs), stream.batch_size):
            batch = np.zeros((stream.batch_size, width), np.uint16)
            for row, pack in enumerate(packs[start : start + stream.batch_size]):
                filled = 0
                for piece in range(first_pieces[pack], first_pieces[pack + 1]):
                    begin, end = first[piece], filled + lengths[piece]
                    tokens = shards[shard_of[piece]]
                    batch[row, filled:end] = tokens[begin : begin + lengths[piece]]
                    filled = end
            yield batch

    return run


def prepare_windows(
    shards: list[np.ndarray], width: int, batch_size: int
) -> Callable[[], Iterator[np.ndarray]]:
    """Returns a loop that reads every token of the files in rows of `width`, in random order."""
    windows = [(s, i) for s, shard in enumerate(shards) for i in range(0, len(shard), width)]
    np.random.default_rng(0).shuffle(windows)
    windows = [(int(shard), int(begin)) for shard, begin in windows]

    def run() -> Iterator[np.ndarray]:
        for start in range(0, len(windows), batch_size):
            batch = np.zeros((batch_size, width), np.uint16)
            for row, (shard, begin) in enumerate(windows[start : start + batch_size]):
                tokens = shards[shard][begin : begin + width]
                batch[row, : len(tokens)] = tokens
            yield batch

    return run


def measure(make: Callable[[], Iterator[np.ndarray]], repeats: int) -> dict:
    """Returns the checksum and the best rate. Batches are dropped at once, as a trainer does."""
    checksum = sum(int(batch.sum(dtype=np.int64)) for batch in make())
    rates = []
    for _ in range(repeats):
        count, start = 0, time.process_time()
        for batch in make():
            count += batch.size
        rates.append(count / (time.process_time() - start) / 1e6)
    rates.sort(reverse=True)
    return {
        "million_tokens_per_cpu_s": round(rates[0], 1),
        "all": [round(rate, 1) for rate in rates],
        "checksum": checksum,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=256, help="millions")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lengths = write_tokens(folder / "tokens", arguments.tokens * 1_000_000)
        for length, batch_size in SETTINGS:
            parts = (Part("web", 1.0, max_repetition=1.0),)
            mixture = Mixture("benchmark", parts, length, holdout_share=0.0)
            out = folder / f"mixture-{length}"
            start = time.process_time()
            manifest = mix(mixture, {"web": folder / "tokens"}, out, seed=0)
            mix_seconds = time.process_time() - start
            stream = Stream(out, batch_size)
            shards = [np.memmap(p, np.uint16, "r") for p in sorted(folder.glob("tokens/*.bin"))]
            peers = {
                "gristmill": lambda o=out, b=batch_size: run_stream(Stream(o, b)),
                "slices": prepare_slices(stream, shards),
                "windows": prepare_windows(shards, length + 1, batch_size),
            }
            rates = {name: measure(make, arguments.repeats) for name, make in peers.items()}
            assert rates["gristmill"]["checksum"] == rates["slices"]["checksum"]
            total = sum(int(shard.sum(dtype=np.int64)) for shard in shards)
            assert rates["windows"]["checksum"] == total
            results.append(
                {
                    "sequence_length": length,
                    "batch_size": batch_size,
                    "packing_efficiency": manifest["parts"][0]["efficiency"],
                    "mix_cpu_s": round(mix_seconds, 2),
                    "rates": rates,
                }
            )
    result = {
        "what": "million tokens per CPU second in the stored type, page cache, one thread, best",
        "tokens": int(lengths.sum()),
        "documents": len(lengths),
        "document_tokens": {"median": float(np.median(lengths)), "mean": float(lengths.mean())},
        "measured": results,
    }
    write_result("stream", result | about(["numpy", "numba", "pyarrow"]))


if __name__ == "__main__":
    main()
