"""Row-local judgements of documents: language, quality, repetition."""
