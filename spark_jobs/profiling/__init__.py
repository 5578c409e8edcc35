"""Profiling: measures, two passes over the data, figures, findings, and the page that shows them."""
