"""What is saved of a run, when, and what is gone back to."""
