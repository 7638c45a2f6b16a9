"""The sensor hub: measures, keeps, sends. Imports broker and config."""
