"""Error rates, and the tables and pictures that show them."""
