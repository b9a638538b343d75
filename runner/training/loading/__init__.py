"""From a base model's files to a loaded, counted and probed model: the protected path."""
