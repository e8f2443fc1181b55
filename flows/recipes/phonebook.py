"""Generated phone books (`synth.phonebook_documents`): all alike, so prose rules do not apply."""

from pipelines.dedup.exact import ExactDedup
from pipelines.readers.jsonl import JsonlReader
from pipelines.recipe import Recipe


def phonebook() -> Recipe:
    """Books as they are written; --source is the file or its folder."""
    return Recipe("phonebook", readers=(JsonlReader(),), steps=(ExactDedup(),))
