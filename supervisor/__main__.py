"""``python -m supervisor`` is ``ws-supervisor``."""

from .cli import main

main()
