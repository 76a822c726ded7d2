// SPDX-License-Identifier: Apache-2.0

package csidriver

import (
	"context"
	"log/slog"

	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// RegistrationSocket is the name of the socket that Registration is served on, in the folder plugins_registry of the
// kubelet's root folder. The kubelet finds it there, and registers the driver as long as it exists.
const RegistrationSocket = Name + "-reg.sock"

// Registration tells the kubelet where the driver is (pluginregistration.v1).
type Registration struct {
	registerapi.UnimplementedRegistrationServer
	// Endpoint is the absolute path of the driver's own socket.
	Endpoint string
	// Log gets the outcome.
	Log *slog.Logger
}

// GetInfo tells name and socket of the driver. The version is that of CSI.
func (r *Registration) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{
		Type: registerapi.CSIPlugin, Name: Name, Endpoint: r.Endpoint, SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus logs the outcome; the kubelet tries again by itself.
func (r *Registration) NotifyRegistrationStatus(ctx context.Context, outcome *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	if outcome.GetPluginRegistered() {
		r.Log.InfoContext(ctx, "Registered with the kubelet")
	} else {
		r.Log.ErrorContext(ctx, "The kubelet refused the registration", "error", outcome.GetError())
	}
	return &registerapi.RegistrationStatusResponse{}, nil
}
