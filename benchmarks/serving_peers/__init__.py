"""Other serving systems, in their own environments, with the models of a release."""
