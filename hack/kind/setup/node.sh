#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Converts a kind node image into a node image of the testbed. The kind node image is the published kindest/node, or the
# image that base.sh and load-images.sh have made. The files of the overlay must have been copied before.
#
# Runs in the container that becomes the node image.
set -euo pipefail

mkdir -p /etc/containerd/certs.d
systemctl enable testbed-guard.service testbed-net.service
# Fail here, not on the start of a node: testbed-guard cannot start with rules that do not load.
nft --check --file /etc/testbed-guard.nft
containerd config dump >/dev/null
for plugin in ptp host-local portmap loopback; do
	test -x "/opt/cni/bin/$plugin" || { echo "CNI plugin $plugin is missing in the image" >&2; exit 1; }
done
