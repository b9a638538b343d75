"""The training itself: adapter, loss, trainer, checkpoints, and what watches over them."""
