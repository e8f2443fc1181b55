"""Prefect flows, the command line, published recipes and reports."""
