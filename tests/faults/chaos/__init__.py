"""`make chaos`: kills and cuts at random moments for as long as one likes, and a table of what came of it."""
