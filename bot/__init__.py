"""The Slack side: commands in, threads out. Never imports torch or `runner.training`."""
