"""From a release to recommendations: the server, what it logs, and what the logs say of other policies."""
