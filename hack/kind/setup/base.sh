#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Converts a Debian root file system into a kind node image. The files of kind's base image and the programs of a node
# must have been copied before. The steps are those of the Dockerfile of kind's base image.
#
# Runs in the container that becomes the node image.
set -euo pipefail

# Disable units that are useless in a container or that would change the host's kernel.
find /lib/systemd/system/sysinit.target.wants/ -name systemd-tmpfiles-setup.service -delete
rm -f /lib/systemd/system/multi-user.target.wants/* /etc/systemd/system/*.wants/* \
	/lib/systemd/system/local-fs.target.wants/* /lib/systemd/system/sockets.target.wants/*udev* \
	/lib/systemd/system/sockets.target.wants/*initctl* /lib/systemd/system/basic.target.wants/*
systemctl mask systemd-binfmt.service
# Keep the host's kernel log out of the node's journal.
echo ReadKMsg=no >>/etc/systemd/journald.conf
ln -sf /lib/systemd/systemd /sbin/init
systemctl enable kubelet.service containerd.service undo-mount-hacks.service

# Omit the rlimits of the default OCI runtime specification. To apply them, limits would have to be raised in the node,
# and a restricted host refuses that.
ctr oci spec |
	jq '.hooks.createContainer += [{"path": "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' \
		>/etc/containerd/cri-base.json

mkdir -p /opt/cni/bin /etc/kubernetes/manifests /etc/containerd/certs.d
cp /usr/lib/cni/* /opt/cni/bin/
rm -rf /var/cache/apt /var/lib/apt/lists/*
