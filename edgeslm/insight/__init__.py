"""What a student learned: the information its layers keep, and when in its training they came to keep it."""
