"""Logits of a teacher, computed beforehand and stored on disk."""
