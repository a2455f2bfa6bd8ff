"""The jobs of a stack in containers."""
