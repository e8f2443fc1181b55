"""Serving, generation and verification of reasoning traces."""
