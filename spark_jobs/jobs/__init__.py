"""The jobs; each reads as its own summary."""
