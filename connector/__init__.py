"""The site's connector: bridges, answers SSDP. Imports broker and config."""
