"""How Keyledger is run: images, manifests, and the stack without containers."""
