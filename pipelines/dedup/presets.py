"""FuzzyDedup with the signatures of three peers: the same candidate pairs, our decision.

A peer drops all but one of each component of candidate pairs and compares nothing. Here the same
pairs are proposed, and law 5 decides: a document goes if its own shingles are similar enough to
those of a kept one. What only the peer would have dropped is in the ledger
(pipelines.dedup.peer_decisions) and in the report. Other parameters: `dataclasses.replace`.

FineWeb deduplicated each crawl by itself, RedPajama-V2 published signatures and dropped nothing:
what is reproduced is how pairs are found.
"""

from pipelines.dedup.fuzzy import FuzzyDedup
from pipelines.dedup.keep import Order
from pipelines.dedup.minhash import Shingles
from pipelines.dedup.nemo_signature import NemoMinHash
from pipelines.dedup.redpajama_signature import RedpajamaMinHash

REDPAJAMA_BANDS = {0.7: (14, 9), 0.8: (9, 13), 0.9: (5, 25), 1.0: (1, 128)}
"""Similarity -> bands and rows of the published signatures, which 128 permutations make."""


def fineweb(keep: tuple[Order, ...] = ()) -> FuzzyDedup:
    """Returns datatrove's bands as FineWeb used them: 14 x 8, 5 words, SHA-1 of 64 bits.

    Verified by 5 words, digits folded as datatrove folds them, at the 75% that FineWeb aimed at.
    datatrove's default hash: `replace(fineweb(), signature=DatatroveMinHash())`.

    Raises:
        ImportError: datatrove is not installed.

    Source: Penedo et al. 2024, The FineWeb Datasets, arXiv:2406.17557;
        github.com/huggingface/datatrove, examples/fineweb.py.
    """
    from pipelines.dedup.datatrove_signature import DatatroveMinHash  # an extra; others do without

    signature = DatatroveMinHash(hash_function="sha1")
    return FuzzyDedup(0.75, shingles=Shingles(fold_digits=True), signature=signature, keep=keep)


def nemotron_cc(keep: tuple[Order, ...] = ()) -> FuzzyDedup:
    """Returns the bands of NeMo Curator's default, which Nemotron-CC used: 20 x 13, 24 characters.

    Verified by 24 characters, folded, at 0.8; the bands turn at 0.79.

    Source: Su et al. 2024, Nemotron-CC, arXiv:2412.02595; github.com/NVIDIA-NeMo/Curator,
        stages/deduplication/fuzzy/workflow.py.
    """
    return FuzzyDedup(0.8, shingles=Shingles("character", 24), signature=NemoMinHash(), keep=keep)


def redpajama_v2(similarity: float = 0.7, keep: tuple[Order, ...] = ()) -> FuzzyDedup:
    """Returns the bands that RedPajama-V2 published for a similarity: 0.7, 0.8, 0.9 or 1.0.

    Verified by 13 words at that similarity.

    Raises:
        ValueError: it published none for the similarity.

    Source: Weber et al. 2024, RedPajama, arXiv:2411.12372; README of
        github.com/togethercomputer/RedPajama-Data, minhash_signature_*.
    """
    if similarity not in REDPAJAMA_BANDS:
        raise ValueError(
            f"redpajama_v2: similarity is {similarity}; wanted one of: "
            f"{', '.join(map(str, REDPAJAMA_BANDS))}"
        )
    signature = RedpajamaMinHash(*REDPAJAMA_BANDS[similarity])
    return FuzzyDedup(similarity, shingles=Shingles(size=13), signature=signature, keep=keep)
