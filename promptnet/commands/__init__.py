"""The commands of `promptnet`: one typed function each. Heavy imports are inside the functions."""
