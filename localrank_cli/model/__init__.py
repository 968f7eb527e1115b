"""The network: from the user's code or from the weights alone, filled strictly."""
