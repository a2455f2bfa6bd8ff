"""The `keyledger` command: runs the local stack and administers owners and keys."""
