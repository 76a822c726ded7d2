// Package pull makes containerd pull images, and tells from the upstream's request log where the bytes came from.
package pull

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// namespace is containerd's namespace for Kubernetes: an image there is one the kubelet finds.
const namespace = "k8s.io"

// HostsDir is the folder with one folder per registry host, each with its hosts.toml.
const HostsDir = "/etc/containerd/certs.d"

// cacheAgent is how the User-Agent of the cache server begins.
const cacheAgent = "registry-cache/"

// Image makes the node's containerd pull the image and returns how long that took. The pull runs in the daemon, by its
// transfer service with the hosts of HostsDir, as a pull for the kubelet does.
func Image(ctx context.Context, node kindcluster.Node, reference string) (time.Duration, error) {
	start := time.Now()
	_, err := node.Run(ctx, nil, "ctr", "--namespace", namespace, "images", "pull",
		"--hosts-dir", HostsDir, "--platform", "linux/"+runtime.GOARCH, reference)
	if err != nil {
		return 0, fmt.Errorf("pulling %s on %s: %w", reference, node.Name, err)
	}
	return time.Since(start), nil
}

// Remove deletes the image from the node and waits until its content is gone, so that a next pull fetches all of it.
// An image that is not there is no error.
func Remove(ctx context.Context, node kindcluster.Node, reference string) error {
	if _, err := node.Run(ctx, nil, "ctr", "--namespace", namespace, "images", "rm", "--sync", reference); err != nil {
		return fmt.Errorf("removing %s on %s: %w", reference, node.Name, err)
	}
	return nil
}

// Outcome is one pull and what the upstream saw of it.
type Outcome struct {
	// Reference and Node say what was pulled where.
	Reference, Node string
	// Duration is the time from the start of the pull to its end.
	Duration time.Duration
	// Requests, BlobRequests and BlobBytes are what the upstream received and sent meanwhile: all requests, those that
	// transferred a blob, and the bytes of their bodies.
	Requests, BlobRequests int
	BlobBytes              int64
	// FromCache and FromNodes count the upstream's requests by who sent them: a cache server, or containerd itself.
	FromCache, FromNodes int
}

// Mark returns the ID of the upstream's latest request: what comes later is Requests(ctx, mark).
func Mark(ctx context.Context, client *upstream.Client) (int64, error) {
	requests, err := client.Requests(ctx, 0)
	if err != nil || len(requests) == 0 {
		return 0, err
	}
	return requests[len(requests)-1].ID, nil
}

// Measured removes the image from the node, pulls it there and returns what the upstream's log says of it. Nothing else
// may be pulled meanwhile.
func Measured(ctx context.Context, client *upstream.Client, node kindcluster.Node, reference string) (Outcome, error) {
	outcome := Outcome{Reference: reference, Node: node.Name}
	if err := Remove(ctx, node, reference); err != nil {
		return outcome, err
	}
	mark, err := Mark(ctx, client)
	if err != nil {
		return outcome, err
	}
	if outcome.Duration, err = Image(ctx, node, reference); err != nil {
		return outcome, err
	}
	requests, err := client.Requests(ctx, mark)
	if err != nil {
		return outcome, err
	}
	outcome.count(requests)
	return outcome, nil
}

func (o *Outcome) count(requests []upstream.Request) {
	for _, request := range requests {
		o.Requests++
		if strings.HasPrefix(request.UserAgent, cacheAgent) {
			o.FromCache++
		} else {
			o.FromNodes++
		}
		if request.Kind == upstream.Blob && request.Method == "GET" {
			o.BlobRequests++
			o.BlobBytes += request.Bytes
		}
	}
}

// ServedBy says in words where the image came from.
func (o Outcome) ServedBy() string {
	switch {
	case o.FromNodes > 0 && o.FromCache > 0:
		return "cache and upstream"
	case o.FromNodes > 0:
		return "upstream, past the cache"
	case o.BlobRequests > 0:
		return "upstream, through the cache"
	default:
		return "cache"
	}
}
