"""OpenAI's API as values: requests in, errors and events out. Pure; no socket, no framework."""
