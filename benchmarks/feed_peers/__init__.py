"""The loaders which Headrace's feed is compared with, each from its own best format and with its best settings."""

import os

# torch's threads otherwise wait for each other by spinning. petastorm's shuffling buffer, 40 columns of small parallel
# copies a batch, then takes up to 5 times as long when anything else runs. It must stand before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
