// SPDX-License-Identifier: Apache-2.0

// Package controlplane runs control planes without nodes on this machine: real etcd, kube-apiserver and
// kube-controller-manager, and gardener-resource-manager between two of them. There is no scheduler, kubelet, kube-proxy
// and storage: pods stay pending until somebody writes their status (MarkReady), and claims have no volume.
//
// Everything listens on the loopback interface, and ends with the Cluster or Process that it belongs to. No pod and no
// Service can be reached, whatever address it is said to have.
package controlplane
