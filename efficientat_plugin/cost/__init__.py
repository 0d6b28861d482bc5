"""Computes the cost of networks: parameters, multiply-accumulates, memory, time."""
