"""Drift: which columns are compared, what Spark counts of them, and the statistics that judge the counts."""
