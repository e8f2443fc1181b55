"""Documents, steps, recipes, sources, dedup, engines and datasets: what everything stands on."""
