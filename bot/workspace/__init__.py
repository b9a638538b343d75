"""A local stand-in for a Slack workspace: the Web API and Socket Mode over real HTTP and WebSocket on loopback.

The real slack_sdk and slack-bolt run against it unchanged; only the address differs (`base_url` of the WebClient).
`server` starts it in a process, `client` steers it from any process, `python -m bot.workspace` serves it by itself.
"""
