"""The controller plugin: CSI for the whole cluster. It finds the node that a call is for and passes it on; holds no data."""
