"""One turn of a wheel: its steps, in which order they run, and what is kept of them."""
