"""The shared language: how anybody trusts and talks to a broker. Imports config."""
