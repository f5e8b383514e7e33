"""Shapes that a budget and a device leave to a student, and what each would cost there. Never imports torch."""
