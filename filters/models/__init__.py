"""Judgements by neural models on disk; the modules that run one load torch."""
