"""SentencePiece models in the JSON of Hugging Face tokenizers, with equal ids.

Three things make both implementations agree, and a wrong one shows as other ids only in rare text:

- BPE: SentencePiece ranks pieces, the JSON ranks pairs. Every split of a piece into two pieces
  becomes a pair, in the order of the pieces.
- Unigram: SentencePiece adds scores in float32, tokenizers in float64, so paths of equal score part
  at rounding. Scores rounded to 1/64 add without error up to 2^18, and ties fall alike.
- tokenizers' Unigram matches every entry of the vocabulary in text, "<s>" and "<0x41>" too. Those
  entries get a score that loses to any spelling in characters.

Spaces are written as U+2581 inside a model. A text that has that character itself stays lossless:
it is escaped by the noncharacter U+FDD0, in the model's own normaliser as well.
"""

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from mixtures.special_tokens import SPECIAL_TOKENS

SPACE = "\u2581"
ESCAPE = "\ufdd0"
NORMALIZATION_RULES = "FDD0\tFDD0 30\n2581\tFDD0 31\n"  # code points, hexadecimal
DENORMALIZATION_RULES = "FDD0 30\tFDD0\nFDD0 31\t2581\n"

# A word as the trainer sees it: white space with what follows. No piece crosses these borders, so
# cutting there changes no id, keeps tokenizers' word cache useful and bounds its quadratic parts.
_WORDS = Regex(f"{SPACE}*[^{SPACE}\\n]+|{SPACE}+|\\n")


def to_tokenizers(model: SentencePieceProcessor, model_type: str) -> Tokenizer:
    """Returns the tokenizer with the same ids as a model that `train_sentencepiece` made.

    Raises:
        ValueError: a piece crosses a word border, so the conversion would not be exact.
    """
    pieces = [model.id_to_piece(i) for i in range(model.vocab_size())]
    learned = [not is_reserved(model, i) for i in range(len(pieces))]
    for piece, is_learned in zip(pieces, learned, strict=True):
        if is_learned and ("\n" in piece or SPACE in piece.lstrip(SPACE)):
            raise ValueError(
                f"sentencepiece model: piece {piece!r} crosses a word border; such a model has no "
                f"exact tokenizer.json. Train it by train_vocabulary."
            )
    scores = [model.get_score(i) for i in range(len(pieces))]
    tokenizer = Tokenizer(
        _bpe(pieces, scores, learned) if model_type == "bpe" else _unigram(pieces, scores, learned)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(ESCAPE, ESCAPE + "0"),
            normalizers.Replace(SPACE, ESCAPE + "1"),
            normalizers.Replace(" ", SPACE),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(_WORDS, "isolated")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace(ESCAPE + "1", SPACE),
            decoders.Replace(ESCAPE + "0", ESCAPE),
        ]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def is_reserved(model: SentencePieceProcessor, piece_id: int) -> bool:
    """Says whether a piece is none that was learned: unknown, control or byte."""
    return model.is_unknown(piece_id) or model.is_control(piece_id) or model.is_byte(piece_id)


def _bpe(pieces: list[str], scores: list[float], learned: list[bool]) -> models.BPE:
    rank = {
        piece: -score
        for piece, score, is_learned in zip(pieces, scores, learned, strict=True)
        if is_learned
    }
    pairs = [
        (rank[piece], -cut, piece[:cut], piece[cut:])
        for piece in rank
        for cut in range(1, len(piece))
        if piece[:cut] in rank and piece[cut:] in rank
    ]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [(left, right) for _, _, left, right in sorted(pairs)]
    return models.BPE(
        vocabulary, merges, unk_token=SPECIAL_TOKENS[0], fuse_unk=True, byte_fallback=True
    )


def _unigram(pieces: list[str], scores: list[float], learned: list[bool]) -> models.Unigram:
    lowest = min(score for score, known in zip(scores, learned, strict=True) if known)
    never = lowest * 100  # the longest special token has 18 characters, each a piece of its own
    table = [
        (piece, score if is_learned else never)
        for piece, score, is_learned in zip(pieces, scores, learned, strict=True)
    ]
    return models.Unigram(table, unk_id=0, byte_fallback=True)
