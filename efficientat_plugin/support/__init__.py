"""Machinery that knows nothing about sound: files, locks, limits, how recipes start."""
