"""The commands of `minigpt`; cli.py lists them."""
