"""What a step of a model has to do: architectures, operators with their FLOPs and bytes, memory."""
