"""Run configurations: one function `run` a module. They need torch's machine, not Prefect's."""
