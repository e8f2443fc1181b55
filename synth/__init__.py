"""Generation and verification of reasoning traces."""
