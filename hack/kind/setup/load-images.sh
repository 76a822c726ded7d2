#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Imports the image archive on standard input into the node's containerd and pins all images, so that the kubelet's
# garbage collection does not delete them.
#
# Runs in the container that becomes the node image, so that the images are unpacked once and not on every start of a
# node. The root of this container may be an overlay, on which no other overlay can be mounted. Unpacking still works
# because each image has only one layer.
set -euo pipefail

containerd --log-level warn >/tmp/containerd.log 2>&1 &
daemon=$!
tries=150 # 30 s
until ctr version >/dev/null 2>&1; do
	if ! kill -0 "$daemon" 2>/dev/null || [ $((tries -= 1)) -eq 0 ]; then
		echo "containerd did not become ready; its log:" >&2
		cat /tmp/containerd.log >&2
		exit 1
	fi
	sleep 0.2
done

ctr --namespace k8s.io images import --local --discard-unpacked-layers - >/dev/null
# Names that begin with sha256: are not references; the images that they stand for are listed by reference as well.
ctr --namespace k8s.io images list --quiet | { grep -v '^sha256:' || true; } | while read -r image; do
	ctr --namespace k8s.io images label "$image" io.cri-containerd.pinned=pinned >/dev/null
done

kill "$daemon"
wait "$daemon" || true
rm -rf /run/containerd /run/nri /tmp/containerd.log
sync -f /var/lib/containerd
