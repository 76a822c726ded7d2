// SPDX-License-Identifier: Apache-2.0

package contract

import (
	"errors"
	"fmt"
	"time"
)

// Ports of the cache server. Container and Service have the same ones.
const (
	// RegistryPort serves the registry API, over https if the server has a certificate.
	RegistryPort = 5000
	// DebugPort serves health, metrics and the states of the upstream and of the volume, over http.
	DebugPort = 5001

	// RegistryPortName and DebugPortName are the names of these ports in the pod and in the Service. Prometheus finds
	// the debug port by its name.
	RegistryPortName = "registry-cache"
	DebugPortName    = "debug"
	// ContainerName is the name of the server's container. Prometheus finds the pods by it.
	ContainerName = "registry-cache"
)

// Paths on DebugPort.
const (
	// HealthPath answers 200 while the process handles requests.
	HealthPath = "/healthz"
	// ReadyPath answers 200 while the server can serve clients, independently of the upstream.
	ReadyPath = "/readyz"
	// MetricsPath answers with metrics in the Prometheus text format.
	MetricsPath = "/metrics"
	// UpstreamPath answers with an UpstreamState as JSON.
	UpstreamPath = "/upstream"
	// VolumePath answers with a VolumeState as JSON.
	VolumePath = "/volume"
)

// MaxAnswerTime is the time within which the server sends the header of a response, or an error, also if several requests to
// the upstream are necessary for it. containerd waits 30 s (from version 2.3 on), and then pulls from the upstream itself;
// the rest of this time is for the connection to the server, and up to 2 s for the verification of stored content that a client
// requests again.
const MaxAnswerTime = 27 * time.Second

// CheckHeaderTimeout accepts the times in which an upstream can be required to send the header of a response: more than 0 and
// at most MaxAnswerTime.
func CheckHeaderTimeout(timeout time.Duration) error {
	if timeout <= 0 || timeout > MaxAnswerTime {
		return fmt.Errorf("must be more than 0s and at most %s, for example 25s", MaxAnswerTime)
	}
	return nil
}

// CheckMaxStale rejects negative times for which an answer about a tag is used while the upstream fails. 0 is valid and
// disables stale answers.
func CheckMaxStale(maxStale time.Duration) error {
	if maxStale < 0 {
		return errors.New("must not be negative, for example 24h; 0s disables stale answers")
	}
	return nil
}

// BasePath is the base endpoint of the registry API on RegistryPort (OCI distribution specification, end-1). Nodes use
// a cache only while it answers 200 to it. The server answers 503 while its volume does not respond.
const BasePath = "/v2/"
