"""Documents, steps, recipes, sources, dedup, engines and datasets: the floor everything stands on."""
