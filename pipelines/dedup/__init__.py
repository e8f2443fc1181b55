"""Deduplication: one copy stays, and the ledger says which and why."""
