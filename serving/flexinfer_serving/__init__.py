"""The OpenAI-compatible router: admission, routing, forwarding, and the engines it talks to."""
