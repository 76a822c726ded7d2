#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Makes a kind node image a node of the testbed, after the files of the overlay are in it. It runs in the container that
# becomes the node image; the image may be the published kindest/node.
set -euo pipefail

mkdir -p /etc/containerd/certs.d
systemctl enable testbed-guard.service testbed-net.service
# A file that does not load would leave the node without a guard.
nft --check --file /etc/testbed-guard.nft
containerd config dump >/dev/null
for plugin in ptp host-local portmap loopback; do
	test -x "/opt/cni/bin/$plugin" || { echo "the image has no CNI plugin $plugin" >&2; exit 1; }
done
