"""All user-facing text of the bot: records and events in, Block Kit with fallback text out. Pure."""
