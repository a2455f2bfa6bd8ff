"""Faults on a whole stack under load, drawn by a seed; each scenario ends with the account of what its clients saw."""
