"""What is loaded: models by name, from a folder, from the hub."""
