"""Offline bundles on the controller: made, looked at, cut to media, served to hosts."""
