"""What a notebook does with its reader: prompts to look at, guesses, claims and exercises."""
