"""Training vocabularies on curated datasets: byte-level BPE or SentencePiece, the same bytes twice.

What is learned depends on the sampled documents and the settings alone: one thread where the order
of additions matters, no paths inside the files.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from mixtures.artifact import (
    documents_fingerprint,
    file_entry,
    fingerprint,
    finished,
    new_folder,
)
from mixtures.document_sample import sample_texts
from mixtures.sentencepiece_json import (
    DENORMALIZATION_RULES,
    NORMALIZATION_RULES,
    to_tokenizers,
)
from mixtures.sentencepiece_model import finalize
from mixtures.special_tokens import BOS_ID, EOS_ID, PAD_ID, SPECIAL_TOKENS, UNK_ID
from mixtures.vocabulary import HF_FILES, MANIFEST, MODEL, TOKENIZER
from pipelines.dataset import Dataset, write_json

KINDS = ("bpe", "sentencepiece")
MODEL_TYPES = ("bpe", "unigram")
MIN_SIZE = 512
"""32 special tokens, 256 bytes and something to learn."""

# Words with a leading space or mark, numbers, runs of marks with the line feeds behind them, blank
# lines, spaces before a word, other white space. Combining marks (\p{M}) stay in their word, else
# Indic scripts fall apart.
_LETTER = r"\p{L}\p{M}"
_PATTERN = (
    rf"[^\r\n{_LETTER}\p{{N}}]?[{_LETTER}]+|NUMBER| ?[^\s{_LETTER}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_vocabulary(
    datasets: Sequence[str | Path],
    out: str | Path,
    kind: str = "bpe",
    size: int = 32_000,
    seed: int = 0,
    sample_bytes: int = 64_000_000,
    model_type: str = "bpe",
    split_digits: bool = True,
) -> dict[str, Any]:
    """Trains a vocabulary into a new folder and returns its manifest.

    Args:
        datasets: folders of curated datasets; their documents are drawn by keyed hash of the id.
        out: folder to write; one that an equal request made is taken as it is.
        kind: "bpe" (byte-level, by tokenizers) or "sentencepiece".
        size: number of ids, the 32 special ones included.
        seed: of the draw.
        sample_bytes: UTF-8 bytes of text to train on, at most.
        model_type: of a SentencePiece model: "bpe", or "unigram", which takes 15 times as long to
            train (140 CPU seconds for 24 MB) and encodes 2.5 times as fast.
        split_digits: every digit is a token of its own.

    Raises:
        ValueError: a setting is wrong, the sample is too small for the size, or `out` holds
            something else.
    """
    if kind not in KINDS:
        raise ValueError(f"train_vocabulary: kind is {kind!r}; wanted one of: {', '.join(KINDS)}")
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f"train_vocabulary: model_type is {model_type!r}; "
            f"wanted one of: {', '.join(MODEL_TYPES)}"
        )
    if size < MIN_SIZE:
        raise ValueError(f"train_vocabulary: size is {size}; wanted at least {MIN_SIZE}")
    out = Path(out)
    opened = [Dataset(path) for path in datasets]
    request = {
        "datasets": [documents_fingerprint(dataset) for dataset in opened],
        "kind": kind,
        "model_type": model_type if kind == "sentencepiece" else "bpe",
        "size": size,
        "seed": seed,
        "sample_bytes": sample_bytes,
        "split_digits": split_digits,
        "version": 1,
    }
    if there := finished(out / MANIFEST, "vocabulary", request):
        return there
    with new_folder(out) as folder:
        texts = sample_texts(opened, seed, sample_bytes)
        if not texts:
            raise ValueError(f"train_vocabulary: {', '.join(map(str, datasets))} hold no text")
        if kind == "bpe":
            tokenizer = _train_bytes(texts, size, split_digits)
        else:
            model = _train_sentencepiece(texts, size, model_type, split_digits, folder)
            (folder / MODEL).write_bytes(model)
            tokenizer = to_tokenizers(SentencePieceProcessor(model_proto=model), model_type)
        _check(tokenizer, size, sum(map(len, texts)))
        return _write(folder, tokenizer, request, len(texts))


def _train_bytes(texts: list[str], size: int, split_digits: bool) -> Tokenizer:
    pattern = _PATTERN.replace("NUMBER", r"\p{N}" if split_digits else r"\p{N}{1,3}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer, len(texts))
    return tokenizer


def _train_sentencepiece(
    texts: list[str], size: int, model_type: str, split_digits: bool, folder: Path
) -> bytes:
    normalization, denormalization = folder / "normalization.tsv", folder / "denormalization.tsv"
    normalization.write_text(NORMALIZATION_RULES, "utf-8")
    denormalization.write_text(DENORMALIZATION_RULES, "utf-8")
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            model_type=model_type,
            vocab_size=size,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            pad_id=-1,
            control_symbols=list(SPECIAL_TOKENS[3:]),
            byte_fallback=True,
            split_digits=split_digits,
            # lossless: nothing is folded, stripped or put in front
            normalization_rule_tsv=str(normalization),
            denormalization_rule_tsv=str(denormalization),
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            # special tokens are spelt in ASCII: see sentencepiece_json
            required_chars="".join(map(chr, range(33, 127))),
            max_sentence_length=1 << 30,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        if "ocab" not in str(error):
            raise
        raise ValueError(
            f"train_vocabulary: a size of {size} does not fit this sample: {error}"
        ) from None
    normalization.unlink()
    denormalization.unlink()
    return finalize(model.getvalue(), round_scores=model_type == "unigram")


def _lines(texts: list[str]) -> Iterator[str]:
    for text in texts:
        yield from filter(None, text.split("\n"))


def _check(tokenizer: Tokenizer, size: int, num_characters: int) -> None:
    """Raises ValueError unless all ids exist and the special tokens have theirs."""
    found = tokenizer.get_vocab_size()
    if found != size:
        raise ValueError(
            f"train_vocabulary: {num_characters:,} characters of text gave {found:,} tokens of "
            f"{size:,}. Ask for fewer or sample more bytes."
        )
    ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    if ids != list(range(len(SPECIAL_TOKENS))):
        raise ValueError(f"train_vocabulary: special tokens got the ids {ids}")


def _write(
    folder: Path, tokenizer: Tokenizer, request: dict[str, Any], num_documents: int
) -> dict[str, Any]:
    tokenizer.save(str(folder / TOKENIZER), pretty=False)
    names = {
        "bos_token": SPECIAL_TOKENS[BOS_ID],
        "eos_token": SPECIAL_TOKENS[EOS_ID],
        "unk_token": SPECIAL_TOKENS[UNK_ID],
        "pad_token": SPECIAL_TOKENS[PAD_ID],
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / HF_FILES[1], names | config)
    write_json(folder / HF_FILES[2], names)
    files = [file_entry(folder, path) for path in sorted(folder.iterdir())]
    manifest = {
        "request": request,
        "kind": request["kind"],
        "size": request["size"],
        "special_tokens": {token: i for i, token in enumerate(SPECIAL_TOKENS)},
        "sampled_documents": num_documents,
        "files": files,
        "fingerprint": fingerprint(files),
    }
    write_json(folder / MANIFEST, manifest)
    return manifest
