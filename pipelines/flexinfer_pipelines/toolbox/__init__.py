"""Scripts that run by path in tool environments. They import nothing of ours, and nothing of ours imports them."""
