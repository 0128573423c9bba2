"""What is asked: prompts, their tokens, their corrupted versions."""
