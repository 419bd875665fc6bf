"""A generated world of drawn shapes, annotated for all tasks: for tests of learning and for small checkpoints."""
