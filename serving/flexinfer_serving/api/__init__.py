"""The HTTP surface: the guard that sees every request first, OpenAI's routes, the admin routes."""
