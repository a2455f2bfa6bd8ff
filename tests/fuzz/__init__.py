"""Fuzzing of what reads bytes and what decides: the parser, the framing, paths, keys. `make fuzz`.

A target (`targets`) takes an input, raises Wrong when something does not hold, and says in a word what the input came to.
Inputs grow by mutation (`mutate`) from the corpus of attacks and from what was kept (`corpus/`); one that comes to something
new is mutated further. What failed is kept by itself, and tried first from then on.
"""
