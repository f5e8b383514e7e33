"""How close a student is to its teacher, and what it answers: measured on the shipped files."""
