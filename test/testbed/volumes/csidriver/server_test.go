// SPDX-License-Identifier: Apache-2.0

package csidriver_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/registry-cache/extension/test/testbed/volumes/csidriver"
)

func TestListenReplacesAStaleSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "made", "csi.sock")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	listener, err := csidriver.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Close(); err != nil {
		t.Error(err)
	}
	for _, endpoint := range []string{"", "csi.sock", "tcp://127.0.0.1:1", "unix://csi.sock"} {
		if _, err := csidriver.Listen(endpoint); err == nil || !strings.Contains(err.Error(), "use unix:///path") {
			t.Errorf("Listen(%q): %v, want an error that says what to use", endpoint, err)
		}
	}
}

func TestRegistration(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	registration := &csidriver.Registration{Endpoint: "/var/lib/kubelet/plugins/x/csi.sock", Log: slog.New(slog.NewTextHandler(&log, nil))}
	client := registerapi.NewRegistrationClient(serve(t, func(server grpc.ServiceRegistrar) {
		registerapi.RegisterRegistrationServer(server, registration)
	}))
	info, err := client.GetInfo(t.Context(), &registerapi.InfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	// What the kubelet checks: kind of plugin, a socket of its own and a version with the major number of CSI.
	if info.GetType() != "CSIPlugin" || info.GetName() != csidriver.Name || info.GetEndpoint() != registration.Endpoint ||
		len(info.GetSupportedVersions()) != 1 || info.GetSupportedVersions()[0] != "1.0.0" {
		t.Errorf("GetInfo returns %v", info)
	}
	for _, status := range []*registerapi.RegistrationStatus{{PluginRegistered: true}, {Error: "name is taken"}} {
		if _, err := client.NotifyRegistrationStatus(t.Context(), status); err != nil {
			t.Error(err)
		}
	}
	for _, want := range []string{"Registered with the kubelet", "level=ERROR", "name is taken"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log has no %q:\n%s", want, &log)
		}
	}
}

// The external-resizer leaves growth to the kubelet if there is a controller service that cannot expand, and a node
// service that can.
func TestCapabilitiesForTheResizer(t *testing.T) {
	t.Parallel()
	connection := serve(t, func(server grpc.ServiceRegistrar) {
		csi.RegisterIdentityServer(server, &csidriver.Identity{Controller: true})
		csi.RegisterControllerServer(server, &csidriver.Controller{})
		csi.RegisterNodeServer(server, &csidriver.NodeCapabilities{})
	})
	identity := csi.NewIdentityClient(connection)
	info, err := identity.GetPluginInfo(t.Context(), &csi.GetPluginInfoRequest{})
	if err != nil || info.GetName() != csidriver.Name {
		t.Errorf("GetPluginInfo: %v, %v", info, err)
	}
	if ready, err := identity.Probe(t.Context(), &csi.ProbeRequest{}); err != nil || !ready.GetReady().GetValue() {
		t.Errorf("Probe: %v, %v", ready, err)
	}
	plugin, err := identity.GetPluginCapabilities(t.Context(), &csi.GetPluginCapabilitiesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	hasController := false
	for _, capability := range plugin.GetCapabilities() {
		hasController = hasController || capability.GetService().GetType() == csi.PluginCapability_Service_CONTROLLER_SERVICE
	}
	if !hasController {
		t.Errorf("no controller service in %v", plugin)
	}
	controller, err := csi.NewControllerClient(connection).ControllerGetCapabilities(t.Context(), &csi.ControllerGetCapabilitiesRequest{})
	if err != nil || len(controller.GetCapabilities()) > 0 {
		t.Errorf("ControllerGetCapabilities: %v, %v; want none", controller, err)
	}
	node, err := csi.NewNodeClient(connection).NodeGetCapabilities(t.Context(), &csi.NodeGetCapabilitiesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	expands := false
	for _, capability := range node.GetCapabilities() {
		expands = expands || capability.GetRpc().GetType() == csi.NodeServiceCapability_RPC_EXPAND_VOLUME
	}
	if !expands {
		t.Errorf("node service cannot expand: %v", node)
	}
}
