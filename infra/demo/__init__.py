"""Tiny models to merge, a family of three skills and a long-to-short pair, and the texts that train and test them."""
