"""What a command leads to, and what an event makes of the state: of owners (`owner`) and API keys (`key`). Pure."""
