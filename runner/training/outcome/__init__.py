"""What a run is worth and what it leaves: evaluation, adapter, card, verification, merge."""
