#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Imports the archive on standard input into the node's containerd and pins what is there, so that the kubelet's
# garbage collection leaves it alone. It runs in the container that becomes the node image.
#
# The images are unpacked here rather than in every node at its start. That works although the container's root may be
# an overlay, on which no overlay can be stacked, because each image has one layer only.
set -euo pipefail

containerd --log-level warn >/tmp/containerd.log 2>&1 &
daemon=$!
tries=150
until ctr version >/dev/null 2>&1; do
	if ! kill -0 "$daemon" 2>/dev/null || [ $((tries -= 1)) -eq 0 ]; then
		echo "containerd does not answer:" >&2
		cat /tmp/containerd.log >&2
		exit 1
	fi
	sleep 0.2
done

ctr --namespace k8s.io images import --local --discard-unpacked-layers - >/dev/null
ctr --namespace k8s.io images list --quiet | { grep -v '^sha256:' || true; } | while read -r image; do
	ctr --namespace k8s.io images label "$image" io.cri-containerd.pinned=pinned >/dev/null
done

kill "$daemon"
wait "$daemon" || true
rm -rf /run/containerd /run/nri /tmp/containerd.log
sync -f /var/lib/containerd
