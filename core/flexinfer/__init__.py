"""FlexInfer's core: the nouns, the seams and the command line that all components stand on."""
