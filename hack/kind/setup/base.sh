#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Turns a Debian root file system with kind's base files and the programs into a kind node. It runs in the container
# that becomes the node image, and does what the Dockerfile of kind's base image does.
set -euo pipefail

# Units that make no sense in a container, or that would act on the host's kernel.
find /lib/systemd/system/sysinit.target.wants/ -name systemd-tmpfiles-setup.service -delete
rm -f /lib/systemd/system/multi-user.target.wants/* /etc/systemd/system/*.wants/* \
	/lib/systemd/system/local-fs.target.wants/* /lib/systemd/system/sockets.target.wants/*udev* \
	/lib/systemd/system/sockets.target.wants/*initctl* /lib/systemd/system/basic.target.wants/*
systemctl mask systemd-binfmt.service
# The host's kernel log is none of the node's business.
echo ReadKMsg=no >>/etc/systemd/journald.conf
ln -sf /lib/systemd/systemd /sbin/init
systemctl enable kubelet.service containerd.service undo-mount-hacks.service

# The limits of the specification would have to be raised in the node, which a restricted host refuses.
ctr oci spec |
	jq '.hooks.createContainer += [{"path": "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' \
		>/etc/containerd/cri-base.json

mkdir -p /opt/cni/bin /etc/kubernetes/manifests /etc/containerd/certs.d
cp /usr/lib/cni/* /opt/cni/bin/
rm -rf /var/cache/apt /var/lib/apt/lists/*
