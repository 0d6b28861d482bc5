"""How well a model does: metrics, agreement with a teacher, tables and figures."""
