"""`python -m flexinfer` is `flexinfer`: how our own processes start one another."""

from flexinfer.cli import main

if __name__ == "__main__":
    main()
