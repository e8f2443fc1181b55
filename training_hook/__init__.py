"""The hybrid Mamba-Transformer and its training loop."""
