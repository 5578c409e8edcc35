"""The command line `headrace` and the runs over several programs: starts the others, reads their manifests."""
