"""What quantisation did to a tensor: arrays in, arrays and records out."""
