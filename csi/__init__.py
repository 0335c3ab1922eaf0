"""The interfaces to Kubernetes: csi.proto, pluginregistration.proto, and what `make proto` generates from them."""
