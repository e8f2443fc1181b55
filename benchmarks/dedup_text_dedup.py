"""A peer of benchmarks.dedup: text-dedup's MinHash, one process, in an environment of its own.

PYTHON benchmarks/dedup_text_dedup.py CORPUS_FOLDER OUT_FOLDER
"""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
from text_dedup.config.base import load_config_from_toml
from text_dedup.minhash import main as deduplicate

CONFIG = """
[input]
input_type = "local_files"
file_type = "parquet"
[input.read_arguments]
path = "parquet"
data_files = "{corpus}"
split = "train"
cache_dir = "{out}/cache"
[algorithm]
algorithm_name = "minhash"
text_column = "text"
num_perm = 100
bands = 20
rows = 5
ngram_size = 5
threshold = 0.8
num_proc = 1
[output]
output_dir = "{out}/kept"
[debug]
"""


def main(corpus: str, out: str) -> None:
    """Runs it with our bands and rows, its own words and no verification, its default."""
    Path(out).mkdir(parents=True)
    source = Path(corpus, "corpus.parquet")
    config = Path(out, "config.toml")
    config.write_text(CONFIG.format(corpus=source.resolve(), out=Path(out).resolve()))
    deduplicate(load_config_from_toml(config))
    from datasets import load_from_disk

    ids = pq.read_table(source, columns=["id", "text"])
    size = sum(len(text.encode()) for text in ids["text"].to_pylist())
    kept = load_from_disk(f"{out}/kept")["id"]
    Path(out, "kept.json").write_text(json.dumps(list(kept)))
    print(json.dumps({"documents_in": len(ids), "kept": len(kept), "text_bytes": size}))


if __name__ == "__main__":
    main(*sys.argv[1:])
