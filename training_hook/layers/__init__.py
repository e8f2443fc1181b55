"""The layers of the hybrid, one file for each letter of the pattern."""
