"""Weights by name, file or folder, and the folder that a trained model becomes."""
