"""Probes: questions about a checkpoint that benchmarks do not answer, each with figures and pictures."""
