"""Special tokens of the Nemotron family, reserved from the start of every vocabulary.

The first 32 ids are the same in every vocabulary that we train, so a chat template, a loss mask or
an exported checkpoint never depends on what was learned. Ids 0 to 2 and 10 to 12 are those of
NVIDIA-Nemotron-Nano-9B-v2; the named ones fill the end of the block (there they stand elsewhere).
"""

from dataclasses import dataclass

UNK_ID = 0
BOS_ID = 1
EOS_ID = 2
END_OF_TURN_ID = 12
PAD_ID = UNK_ID  # as Nemotron's fine-tuning does; padded targets are masked in any case

_NAMED = (
    "<think>",
    "</think>",
    "<AVAILABLE_TOOLS>",
    "</AVAILABLE_TOOLS>",
    "<TOOLCALL>",
    "</TOOLCALL>",
    "<TOOL_RESPONSE>",
    "</TOOL_RESPONSE>",
)

SPECIAL_TOKENS = (
    "<unk>",
    "<s>",
    "</s>",
    *(f"<SPECIAL_{i}>" for i in range(3, 32 - len(_NAMED))),
    *_NAMED,
)
"""The reserved block: the position is the id. SPECIAL_10, 11 and 12 are system, user, end of turn.

No learned token can spell one: SentencePiece leaves them out of what it learns from, and a word of
our byte-level BPE never has a letter or digit before a ">".
"""


@dataclass(frozen=True)
class SpecialIds:
    """Ids that a server has to know; those of the vocabularies that we train unless given."""

    bos: int = BOS_ID
    eos: int = EOS_ID
    """Ends every document that is trained on."""
    pad: int = PAD_ID
    stops: tuple[int, ...] = (EOS_ID, END_OF_TURN_ID)
    """What ends a generated text."""
