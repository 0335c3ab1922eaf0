#!/usr/bin/env bash
# Generates the Python modules of csi/*.proto below the folder that is given; `make proto` gives the repository itself.
# PYTHON names an interpreter that has grpcio-tools and mypy-protobuf: the versions of requirements.lock give the bytes that
# are committed.
set -eu
to=$(realpath "$1")
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
bin=$(dirname "$python")

exec "$python" -m grpc_tools.protoc --proto_path=. --python_out="$to" --grpc_python_out="$to" \
    --plugin=protoc-gen-mypy="$bin/protoc-gen-mypy" --mypy_out="quiet:$to" \
    --plugin=protoc-gen-mypy_grpc="$bin/protoc-gen-mypy_grpc" --mypy_grpc_out="quiet,generate_concrete_servicer_stubs:$to" \
    csi/csi.proto csi/pluginregistration.proto
