"""Setting up: what a process is told at start. Imports nothing of ours."""
