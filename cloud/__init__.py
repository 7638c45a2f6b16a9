"""The cloud service: stores, acknowledges, tells. Imports broker and config."""
