"""The checks of the gate, a function a check: reports in, a finding with its reasons out."""
