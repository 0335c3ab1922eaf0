"""Processes of the engine: keeper, service, and the clients that speak to them."""
