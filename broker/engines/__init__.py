"""Engines that exist: their configuration, written from the fleet, and their processes, watched."""
