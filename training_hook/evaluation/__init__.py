"""What a model can do: bits per byte, and tasks with exact answers."""
