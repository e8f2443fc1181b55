"""Published recipes: which steps, in which order, with which thresholds."""
