"""A model seen from outside: its layers, its blocks, what goes into them, and how to change them."""
