"""Headrace's training."""
