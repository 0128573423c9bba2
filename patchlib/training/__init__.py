"""`mini`, the small model that ships with the project: its corpus, training and skills."""
