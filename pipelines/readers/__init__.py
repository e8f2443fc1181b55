"""Readers, one file for each format: from bytes to record batches of documents."""
