#!/usr/bin/env bash
# Makes a base image on a machine that can pull none: a minimal Debian with Python and the engine's system libraries.
#
#   infra/images/base.sh [TAG]        (default slipway/base:bookworm; about a minute, nothing if the image is there)
#
# Then `rollout.base_image: slipway/base:bookworm` in the spec. Needs root, mmdebstrap and a Docker engine.
# Packages come from this host's own Debian mirror when it has one for the same suite.
set -euo pipefail

tag=${1:-slipway/base:bookworm}
suite=bookworm
packages=python3,libgomp1,libstdc++6

if docker image inspect "$tag" >/dev/null 2>&1; then
    echo "$tag is there"
    exit 0
fi
command -v mmdebstrap >/dev/null || { echo "mmdebstrap is missing: apt-get install mmdebstrap" >&2; exit 1; }

sources=()
for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
    if [ -e "$file" ] && grep -q "$suite" "$file"; then
        sources=("$file")
        break
    fi
done

# Caches, manuals and translations have no place in an image that only serves. Tagged last, so that a bootstrap that
# failed half-way leaves no image under the name.
image=$(mmdebstrap --quiet --variant=minbase --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    "$suite" - "${sources[@]}" | docker import -)
docker tag "$image" "$tag"
echo "$tag made"
