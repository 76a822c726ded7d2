// SPDX-License-Identifier: Apache-2.0

// Package container runs the testbed's upstream registry as a container beside the nodes of a kind cluster.
package container

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/registry-cache/extension/test/testbed/host"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/poll"
	"github.com/registry-cache/extension/test/testbed/upstream"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

const (
	// Name is the container's name, one for a host.
	Name = "registry-cache-upstream"
	// trustName is the name of its CA in the nodes' trust store.
	trustName = Name
	// adminPort is the port of the admin API, reachable from the host at the container's address.
	adminPort = "8080"
	// ProxyPort is the port of a forward proxy beside the registry, at whose address it is, see upstream.ServeProxy.
	ProxyPort = "3128"
	// ownLabel marks container and image as ours; the value of the container's is its fingerprint.
	ownLabel = "registry-cache.testbed.upstream"
	// startTimeout bounds the wait for the catalogue to be generated, which takes about 1.2 s.
	startTimeout = 2 * time.Minute
	pollInterval = 200 * time.Millisecond
)

// programArgs returns the program's arguments. Docker Hub and ghcr.io demand a token for every pull; quay.io stands for
// the registries that do not, for public images.
func programArgs() []string {
	return []string{"--sample", samplePath, "--token-hosts", "docker.io,ghcr.io", "--proxy", ":" + ProxyPort}
}

// state is what docker and podman tell alike about a container.
type state struct {
	State struct {
		Running bool
	}
	Config struct {
		Labels map[string]string
	}
	NetworkSettings struct {
		Networks map[string]struct{ IPAddress string }
	}
}

// Ensure runs the registry, or finds it and repairs what differs, and lets the nodes and pods of the cluster resolve
// upstream.Hosts to it and the nodes trust its CA. It returns when the registry answers with the whole catalogue.
func Ensure(ctx context.Context, c *kindcluster.Cluster, p *workspace.Progress) (*upstream.Client, error) {
	var client *upstream.Client
	err := p.Step("Running the upstream registry", func() error {
		image, err := ensureImage(ctx, c.Engine())
		if err != nil {
			return err
		}
		dir, err := caDir()
		if err != nil {
			return err
		}
		ca, err := upstream.LoadOrCreate(dir)
		if err != nil {
			return err
		}
		ip, err := ensureContainer(ctx, c.Engine(), c.Network(), image, dir, ca.PEM())
		if err != nil {
			return err
		}
		client = newClient(ip)
		if err := waitUntilHealthy(ctx, c.Engine(), client); err != nil {
			return err
		}
		if err := c.SetHosts(ctx, map[string][]string{ip: upstream.Hosts()}); err != nil {
			return err
		}
		return c.TrustCA(ctx, trustName, ca.PEM())
	})
	return client, err
}

// Open returns a client for the running registry.
func Open(ctx context.Context, e *host.Engine) (*upstream.Client, error) {
	s, err := inspect(ctx, e)
	if err != nil {
		return nil, err
	}
	if s == nil || !s.State.Running {
		return nil, fmt.Errorf("container %s is not running", Name)
	}
	for _, network := range s.NetworkSettings.Networks {
		if network.IPAddress != "" {
			return newClient(network.IPAddress), nil
		}
	}
	return nil, fmt.Errorf("container %s has no address", Name)
}

// Delete removes the container with its blobs, and its image. It is no error if they are not there.
func Delete(ctx context.Context, e *host.Engine) error {
	if err := remove(ctx, e); err != nil {
		return err
	}
	return removeImages(ctx, e, "")
}

// CACertificate returns the PEM certificate of the CA that Ensure made.
func CACertificate() ([]byte, error) {
	dir, err := caDir()
	if err != nil {
		return nil, err
	}
	ca, err := upstream.LoadOrCreate(dir)
	if err != nil {
		return nil, err
	}
	return ca.PEM(), nil
}

func caDir() (string, error) {
	dir, err := workspace.StateDir()
	return filepath.Join(dir, "upstream"), err
}

func newClient(ip string) *upstream.Client {
	return upstream.NewClient("http://" + ip + ":" + adminPort)
}

// ensureContainer makes the container run with the image and the CA in dir, and returns its address in the network.
func ensureContainer(ctx context.Context, e *host.Engine, network, image, dir string, pem []byte) (ip string, err error) {
	want := fingerprint(image, network, dir, pem)
	s, err := inspect(ctx, e)
	if err != nil {
		return "", err
	}
	if ip := s.address(network, want); ip != "" {
		return ip, nil
	}
	// A stopped container is not started again: its network may have been made anew meanwhile.
	if err := remove(ctx, e); err != nil {
		return "", err
	}
	args := []string{
		"run", "--detach", "--name", Name, "--label", ownLabel + "=" + want, "--network", network,
		"--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE", "--security-opt", "no-new-privileges",
		"--read-only", "--volume", "/data", "--volume", dir + ":/ca:ro", image,
	}
	if _, err := e.Run(ctx, nil, append(args, programArgs()...)...); err != nil {
		return "", fmt.Errorf("starting container %s: %w", Name, err)
	}
	if s, err = inspect(ctx, e); err != nil {
		return "", err
	}
	if ip = s.address(network, want); ip == "" {
		return "", stopped(ctx, e)
	}
	return ip, removeImages(ctx, e, image)
}

// fingerprint identifies everything that a running container cannot take over.
func fingerprint(image, network, dir string, pem []byte) string {
	h := sha256.New()
	for _, part := range slices.Concat([]string{image, network, dir, string(pem)}, programArgs()) {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// address returns the address in the network of a running container with the fingerprint, and "" for any other.
func (s *state) address(network, fingerprint string) string {
	if s == nil || !s.State.Running || s.Config.Labels[ownLabel] != fingerprint {
		return ""
	}
	return s.NetworkSettings.Networks[network].IPAddress
}

// inspect returns nil if there is no container.
func inspect(ctx context.Context, e *host.Engine) (*state, error) {
	ids, err := e.Run(ctx, nil, "ps", "--all", "--quiet", "--filter", "label="+ownLabel)
	if err != nil {
		return nil, fmt.Errorf("looking for container %s: %w", Name, err)
	}
	if strings.TrimSpace(string(ids)) == "" {
		return nil, nil
	}
	out, err := e.Run(ctx, nil, "container", "inspect", Name)
	if err != nil {
		return nil, fmt.Errorf("inspecting container %s: %w", Name, err)
	}
	return parseState(out)
}

func parseState(inspected []byte) (*state, error) {
	var states []state
	if err := json.Unmarshal(inspected, &states); err != nil {
		return nil, fmt.Errorf("reading what the container engine tells about %s: %w", Name, err)
	}
	if len(states) != 1 {
		return nil, fmt.Errorf("the container engine tells about %d containers %s, not one", len(states), Name)
	}
	return &states[0], nil
}

func remove(ctx context.Context, e *host.Engine) error {
	s, err := inspect(ctx, e)
	if err != nil || s == nil {
		return err
	}
	// Nothing in it is worth the ten seconds that the engines give a program to end.
	if _, err := e.Run(ctx, nil, "rm", "--force", "--volumes", Name); err != nil {
		return fmt.Errorf("removing container %s: %w", Name, err)
	}
	return nil
}

func waitUntilHealthy(ctx context.Context, e *host.Engine, client *upstream.Client) error {
	return poll.Until(ctx, pollInterval, startTimeout, func(ctx context.Context) error {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		err := client.Healthy(attempt)
		if err == nil {
			return nil
		}
		s, inspectErr := inspect(ctx, e)
		if inspectErr == nil && (s == nil || !s.State.Running) {
			return poll.Stop(stopped(ctx, e))
		}
		return errors.Join(err, inspectErr)
	})
}

// stopped returns an error with the end of the container's log.
func stopped(ctx context.Context, e *host.Engine) error {
	var logs strings.Builder
	if err := e.Stream(ctx, nil, &logs, "logs", "--tail", "20", Name); err != nil {
		return fmt.Errorf("container %s is not running, and its log cannot be read: %w", Name, err)
	}
	return fmt.Errorf("container %s is not running; the end of its log:\n%s", Name, strings.TrimSpace(logs.String()))
}
