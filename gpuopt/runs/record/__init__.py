"""What a run writes of itself, and what is read of it."""
