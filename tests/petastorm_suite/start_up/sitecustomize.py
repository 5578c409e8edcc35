"""Puts the adapter in place in the Python processes that Spark starts; on PYTHONPATH while the suite runs.

Spark's workers unpickle functions of petastorm, so it must import there, and no code of ours runs first.
"""

import os

if not os.environ.get("WITHOUT_ADAPTER"):
    from training.petastorm_on_arrow import install

    install()
