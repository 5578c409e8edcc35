"""Benchmarks; each prints one table and, as its last line, one JSON object."""
