"""One file for each lineage of model families; every `Family` value in them is registered by being there."""
