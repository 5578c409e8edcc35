"""Headrace's benchmarks."""
