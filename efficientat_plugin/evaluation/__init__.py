"""Evaluates models: metrics, agreement with a teacher, tables and figures."""
