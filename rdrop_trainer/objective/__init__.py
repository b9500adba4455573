"""The R-Drop loss of a batch, without a `Trainer`."""
