"""Embedding tables over ranks: where each lies, how its rows are looked up, learned, saved and found again."""
