"""Parts of the benchmark of the wheel: the real log and its periods, who asks and how they react, what is measured."""
