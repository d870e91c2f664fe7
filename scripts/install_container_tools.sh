#!/usr/bin/env bash
# Installs what `make test-containers` runs containers with on a Debian machine, as root: podman with runc, and a root file
# system of Debian's own archive, on which stand-ins for the official base images are built (no image registry is asked).
# The root file system is kept in HILORA_CONTAINER_STATE (/var/tmp/hilora-containers) and made again after two weeks.
set -euo pipefail
cd "$(dirname "$0")/.."
STATE=${HILORA_CONTAINER_STATE:-/var/tmp/hilora-containers}
PACKAGES=(podman runc catatonit containernetworking-plugins netavark aardvark-dns iptables mmdebstrap)

if ! command -v podman > /dev/null || ! command -v runc > /dev/null || ! command -v mmdebstrap > /dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${PACKAGES[@]}"
fi
scripts/install_deploy_tools.sh

mkdir -p "$STATE"
if [ -z "$(find "$STATE" -maxdepth 1 -type f -name rootfs.tar -mtime -14)" ]; then
    # mmdebstrap makes what the name ends in: a folder, if that is not .tar.
    rm -rf "$STATE/rootfs.tar" "$STATE/rootfs.part.tar"
    mmdebstrap --quiet --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates \
        bookworm "$STATE/rootfs.part.tar"
    mv "$STATE/rootfs.part.tar" "$STATE/rootfs.tar"
fi
