"""Packs, region indexes, manifests: upload, restore, verify. `packbuffer` is standard library only."""
