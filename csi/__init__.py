"""The Container Storage Interface: csi.proto and what is generated from it."""
