"""Engine plug-ins, one module each. They import the core only, so that the operator and validators load them too."""
