"""One machine: start the processes, show what they say, end them all. Imports no component."""
