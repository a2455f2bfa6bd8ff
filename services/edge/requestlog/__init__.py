"""The request log: what a record holds (`format`), how it gets to disk (`writer`, `sync`), who reads it back (`reader`),
and the fold of it that restores the limits (`snapshot`).
"""
