"""`python -m roundwise.cli` is `roundwise`."""

from roundwise.cli import main

main()
