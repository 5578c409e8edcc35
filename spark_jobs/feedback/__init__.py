"""Feedback: what was shown joined with what was done, bots left out, late clicks in time, labels and weights."""
