"""Reading and writing files safely: each kind in one place."""
