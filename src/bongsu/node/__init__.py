"""One replica's engine: who is here, what they may do, and how a publication reaches them."""
