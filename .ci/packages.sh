#!/usr/bin/env bash
# Installs the Debian packages of programs that are missing: `packages.sh` for demo and tests, `packages.sh bench` also for benchmarks.
set -eu

declare -A package=(
    [fio]=fio [mkfs.xfs]=xfsprogs [mkfs.ext4]=e2fsprogs [mount]=mount [losetup]=mount [blockdev]=util-linux
    [sqlite3]=sqlite3 [cmp]=diffutils [pgrep]=procps [fuser]=psmisc
)
if [ "${1:-}" = bench ]; then
    package[qemu-storage-daemon]=qemu-system-common
    package[restic]=restic
    package[borg]=borgbackup
    package[gcc]=gcc
    [ -e /usr/include/stdio.h ] || package[stdio.h]=libc6-dev
fi

missing=()
for program in "${!package[@]}"; do
    command -v "$program" >/dev/null || missing+=("${package[$program]}")
done
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
command -v pgbench >/dev/null || missing+=(postgresql-contrib)

if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "missing Debian packages: ${missing[*]}; install them, or run this as root" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
