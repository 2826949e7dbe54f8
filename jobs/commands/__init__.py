"""One module a sub-command. Each has `register(app)`; `jobs.cli` finds them by listing this folder."""
