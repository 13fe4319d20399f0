"""The `hwnas` command, installed as `hwnas.cli`: one file a subcommand. Nothing in the library imports it."""
