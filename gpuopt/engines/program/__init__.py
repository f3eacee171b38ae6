"""A rule's update as a program: traced, and cut into passes and stages."""
