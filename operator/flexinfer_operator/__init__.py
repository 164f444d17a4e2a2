"""The control loop that binds artifacts to Models and decides replicas."""
