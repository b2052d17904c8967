"""python -m jepakit."""

from jepakit.cli import main

main()
