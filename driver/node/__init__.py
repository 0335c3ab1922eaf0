"""The node plugin: CSI's services for the volumes of this node. Translates; holds no data. The engine does the work."""
