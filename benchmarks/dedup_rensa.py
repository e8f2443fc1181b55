"""A peer of benchmarks.dedup: rensa's MinHash and LSH after Python shingling, in its environment.

PYTHON benchmarks/dedup_rensa.py CORPUS_FOLDER OUT_FOLDER
"""

import json
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rensa import RMinHash, RMinHashLSH

WORD = re.compile(r"\w+")
BATCH = 500


def shingles(text: str) -> list[str]:
    """Returns the runs of five lower-case words."""
    words = WORD.findall(text.lower())
    return [" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))]


def main(corpus: str, out: str) -> None:
    """Drops a document if an earlier kept one shares a band and 80% of the signature with it."""
    table = pq.read_table(Path(corpus, "corpus.parquet"))
    texts = table["text"].to_pylist()
    lsh = RMinHashLSH(threshold=0.8, num_perm=100, num_bands=20)
    signatures: list[RMinHash] = []
    kept = []
    for start in range(0, len(texts), BATCH):
        sets = [shingles(text) for text in texts[start : start + BATCH]]
        for number, mine in enumerate(RMinHash.from_token_sets(sets, 100, 42), start):
            signatures.append(mine)
            if any(mine.jaccard(signatures[other]) >= 0.8 for other in lsh.query(mine)):
                continue
            lsh.insert(number, mine)
            kept.append(number)
    Path(out).mkdir(parents=True)
    chosen = table.take(pa.array(kept, pa.int64()))
    pq.write_table(chosen, Path(out, "kept.parquet"), compression="zstd")
    Path(out, "kept.json").write_text(json.dumps(chosen["id"].to_pylist()))
    size = sum(len(text.encode()) for text in texts)
    print(json.dumps({"documents_in": len(texts), "kept": len(kept), "text_bytes": size}))


if __name__ == "__main__":
    main(*sys.argv[1:])
