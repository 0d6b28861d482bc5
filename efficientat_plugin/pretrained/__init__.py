"""Loads weights by name, file or folder; writes model folders of trained models."""
