"""From a source to a verified artifact: plan, steps, sources, quantizers, validators, flows."""
