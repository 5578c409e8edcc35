"""Headrace's pipelines."""
