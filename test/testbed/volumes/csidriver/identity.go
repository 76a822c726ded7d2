// SPDX-License-Identifier: Apache-2.0

// Package csidriver is a CSI driver for volumes on the disks of a node: loop devices with XFS, see package disk.
//
// The driver has a node service on every node and, for the external-resizer alone, an instance that only tells what
// the driver can do. Volumes are made and deleted by package provisioner, in the process of the node service.
package csidriver

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Name is the name of the driver, of its CSIDriver object, and the provisioner of its StorageClass.
const Name = "volumes.testbed.registry-cache"

const version = "1"

// Identity is the CSI identity service.
type Identity struct {
	csi.UnimplementedIdentityServer
	// Controller tells that the process has the controller service, too.
	Controller bool
}

// GetPluginInfo tells the driver's name.
func (i *Identity) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: Name, VendorVersion: version}, nil
}

// GetPluginCapabilities tells that volumes belong to a node and grow while they are used.
func (i *Identity) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	capabilities := []*csi.PluginCapability{
		{Type: &csi.PluginCapability_VolumeExpansion_{
			VolumeExpansion: &csi.PluginCapability_VolumeExpansion{Type: csi.PluginCapability_VolumeExpansion_ONLINE}}},
	}
	if i.Controller {
		capabilities = append(capabilities, &csi.PluginCapability{Type: &csi.PluginCapability_Service_{
			Service: &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE}}})
	}
	return &csi.GetPluginCapabilitiesResponse{Capabilities: capabilities}, nil
}

// Probe tells that the driver is ready, as it always is.
func (i *Identity) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}

// Controller is the CSI controller service. It can do nothing: without a capability to expand volumes, and with a
// node service that has it, the external-resizer leaves growth to the kubelet.
type Controller struct {
	csi.UnimplementedControllerServer
}

// ControllerGetCapabilities returns an empty list.
func (*Controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	return &csi.ControllerGetCapabilitiesResponse{}, nil
}

// NodeCapabilities is the part of the node service that needs no node.
type NodeCapabilities struct{ csi.UnimplementedNodeServer }

// NodeGetCapabilities tells that the node service stages, expands and measures volumes.
func (*NodeCapabilities) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	var capabilities []*csi.NodeServiceCapability
	for _, rpc := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
	} {
		capabilities = append(capabilities, &csi.NodeServiceCapability{Type: &csi.NodeServiceCapability_Rpc{
			Rpc: &csi.NodeServiceCapability_RPC{Type: rpc}}})
	}
	return &csi.NodeGetCapabilitiesResponse{Capabilities: capabilities}, nil
}
