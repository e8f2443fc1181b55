"""Tokenizers, token datasets, mixtures and the resumable stream."""
