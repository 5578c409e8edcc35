"""The ways to train a DLRM which Headrace's training is compared with, each as its expert would write it."""

import os

# Threads otherwise wait for each other by spinning, which takes the cores from the other rank and from the loaders'
# workers. It must stand before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
