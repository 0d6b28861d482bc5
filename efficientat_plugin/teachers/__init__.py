"""Teachers: whatever can say what a clip contains, as a ``TeacherTarget``."""
