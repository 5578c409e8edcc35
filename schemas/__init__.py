"""What the data promises: contracts, ledgers, manifests and snapshots. Knows neither Spark nor torch."""
