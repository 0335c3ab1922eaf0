#!/usr/bin/env bash
# Makes the lock files anew from pyproject.toml: requirements.lock for development and tests, and its part that the image
# holds, requirements-runtime.lock. UV names the program uv.
set -eu
cd "$(dirname "$0")/.."
compile() {
    "${UV:-uv}" pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
        --no-emit-index-url --quiet "$@"
}

compile --extra dev --extra bench -o requirements.lock
compile --constraint requirements.lock -o requirements-runtime.lock
