"""Machinery that is independent of sound: files, locks, limits, starting recipes."""
