#!/usr/bin/env bash
# Prints what manifests/stillframe.yaml holds: the chart with its defaults, for clusters without Helm. HELM names the program.
set -eu
cd "$(dirname "$0")/.."
cat <<'YAML'
# The chart in charts/stillframe with its defaults; made by `make manifests`, never by hand. Before it:
#   - the snapshot CRDs and the snapshot controller (docs/installation.md), and the image docker.io/library/stillframe:0.1.0
#     on the nodes, or another name put in its place
#   - your repositories in the ConfigMap stillframe-repositories
# Then: kubectl apply -f stillframe.yaml
---
apiVersion: v1
kind: Namespace
metadata:
  name: stillframe
  labels:
    pod-security.kubernetes.io/enforce: privileged
YAML
# Helm's hooks mean nothing to kubectl. The version of Kubernetes is the oldest that the chart takes: kubectl refuses an object
# with a field that its API server does not know.
exec "${HELM:-helm}" template stillframe charts/stillframe --namespace stillframe --kube-version 1.29.0 --no-hooks \
    --set uninstallGuard.enabled=false
