"""The edge's copy of key and owner states, in LMDB: one writer (the agent), lock-free readers (the serving processes)."""
