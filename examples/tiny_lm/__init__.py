"""The parts of `examples/train_tiny_lm.py`: corpus, model, optimizer, evaluation, files on disk, model card."""
