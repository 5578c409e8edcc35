"""Skew: logged requests, the same requests through the batch features, and how the two differ."""
