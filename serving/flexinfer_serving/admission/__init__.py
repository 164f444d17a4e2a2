"""Who is let through, and when: pure state machines. Shells feed them events and perform their effects."""
