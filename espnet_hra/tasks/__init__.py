"""What a task is, in memory and on disk."""
