"""Multiple-choice questions: asked, answered, read out and counted."""
