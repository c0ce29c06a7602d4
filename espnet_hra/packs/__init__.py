"""Models and tasks to give away."""
