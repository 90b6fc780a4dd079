"""``python -m samsg``."""

from samsg.cli import main

main()
