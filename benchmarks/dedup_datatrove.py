"""The peer of benchmarks.dedup: datatrove's four MinHash stages, one task and one worker each.

python -m benchmarks.dedup_datatrove CORPUS_FOLDER OUT_FOLDER
"""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter


def main(corpus: str, out: str) -> None:
    """Runs the stages with datatrove's defaults (14 bands of 8); prints counts as JSON."""
    config = MinhashConfig()
    stages = [
        ([ParquetReader(corpus), MinhashDedupSignature(f"{out}/signatures", config)], 1),
        ([MinhashDedupBuckets(f"{out}/signatures", f"{out}/buckets", config=config)], 14),
        ([MinhashDedupCluster(f"{out}/buckets", f"{out}/remove", config=config)], 1),
        (
            [
                ParquetReader(corpus),
                MinhashDedupFilter(f"{out}/remove"),
                ParquetWriter(f"{out}/kept", compression="zstd"),
            ],
            1,
        ),
    ]
    for number, (pipeline, tasks) in enumerate(stages):
        logs = f"{out}/logs/{number}"
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=logs).run()
    texts = pq.read_table(corpus, columns=["text"])["text"].to_pylist()
    files = sorted(Path(out, "kept").glob("*.parquet"))
    ids = [key for path in files for key in pq.read_table(path, columns=["id"])["id"].to_pylist()]
    Path(out, "kept.json").write_text(json.dumps(ids))
    size = sum(len(text.encode()) for text in texts)
    result = {"documents_in": len(texts), "kept": len(ids), "text_bytes": size}
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
