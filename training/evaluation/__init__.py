"""Benchmarks: what is asked, how answers are stored, and one file per family of figures."""
