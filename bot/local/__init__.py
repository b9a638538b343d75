"""All parts on one machine, without Slack, Redis, GPU or model hub: what `make demo` and `make run` use."""
