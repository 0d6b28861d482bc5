"""Kernels that make students faster on a CPU."""
