"""Annotation formats as they are published -> samples that can be trained on and evaluated."""
