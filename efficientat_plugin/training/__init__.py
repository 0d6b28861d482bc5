"""Losses, schedules and the Brains that train students."""
