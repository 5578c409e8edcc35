"""The parts of the training benchmark: speed beside peers, tables by size, quality beside other learners, faults."""
