// SPDX-License-Identifier: Apache-2.0

// Package pull makes containerd pull images, and tells from the upstream's request log where the bytes came from.
package pull

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/poll"
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

// The CRI plugin sees a new image by an event, and names it by its ID as well.
const (
	removeInterval = 100 * time.Millisecond
	removeTimeout  = 2 * time.Minute
)

// Remove deletes the images from the node, under all names that they have there, and waits until their content is gone, so
// that a next pull fetches all of it. An image that is not there is no error.
func Remove(ctx context.Context, node kindcluster.Node, references ...string) error {
	filters := make([]string, 0, len(references))
	for _, reference := range references {
		filters = append(filters, "name=="+reference)
	}
	if len(filters) == 0 {
		// No filter would stand for all images.
		return nil
	}
	found, err := list(ctx, node, filters...)
	if err != nil || len(found) == 0 {
		return err
	}
	filters = filters[:0]
	for _, image := range found {
		filters = append(filters, "target.digest=="+image.digest)
	}
	err = poll.Until(ctx, removeInterval, removeTimeout, func(ctx context.Context) error {
		names, err := list(ctx, node, filters...)
		if err != nil || len(names) == 0 {
			return err
		}
		remove := []string{"ctr", "--namespace", namespace, "images", "rm", "--sync"}
		for _, image := range names {
			remove = append(remove, image.name)
		}
		if _, err := node.Run(ctx, nil, remove...); err != nil {
			return err
		}
		return fmt.Errorf("it was still named %v", names)
	})
	if err != nil {
		return fmt.Errorf("removing %s on %s: %w", strings.Join(references, ", "), node.Name, err)
	}
	return nil
}

// Digest returns the digest of the manifest or index that the image stands for on the node, "sha256:<hex>"; "" if the
// node does not have it.
func Digest(ctx context.Context, node kindcluster.Node, reference string) (string, error) {
	found, err := list(ctx, node, "name=="+reference)
	if err != nil || len(found) == 0 {
		return "", err
	}
	return found[0].digest, nil
}

// named is a name of an image on a node, and the digest of the manifest or index that it stands for.
type named struct{ name, digest string }

// list returns the names of images that match at least one of the filters.
func list(ctx context.Context, node kindcluster.Node, filters ...string) ([]named, error) {
	out, err := node.Run(ctx, nil, append([]string{"ctr", "--namespace", namespace, "images", "ls"}, filters...)...)
	if err != nil {
		return nil, fmt.Errorf("listing images on %s: %w", node.Name, err)
	}
	return parseList(string(out))
}

// parseList reads what "ctr images ls" prints: a header, and a line for each name.
func parseList(out string) ([]named, error) {
	header, lines, _ := strings.Cut(out, "\n")
	if columns := strings.Fields(header); len(columns) < 3 || columns[0] != "REF" || columns[2] != "DIGEST" {
		return nil, fmt.Errorf("the list of images begins with %q, want the columns REF, TYPE and DIGEST", header)
	}
	var found []named
	for line := range strings.Lines(lines) {
		fields := strings.Fields(line)
		if len(fields) < 3 {
			return nil, fmt.Errorf("the list of images has the line %q", line)
		}
		found = append(found, named{fields[0], fields[2]})
	}
	return found, nil
}

// Outcome is one pull and what the upstream saw of it.
type Outcome struct {
	// Reference and Node say what was pulled where.
	Reference, Node string
	// Duration is the time from the start of the pull to its end.
	Duration time.Duration
	// Requests is the number of requests that the upstream received for the registry of the image, BlobRequests the number
	// of those that transferred a blob, and BlobBytes the sum of the sizes of their bodies.
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

// Measured removes the image from the node, pulls it there, and counts the requests that the upstream received for the
// registry of the image. Concurrent pulls from the same registry would be counted, too.
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
	registry, _, _ := strings.Cut(o.Reference, "/")
	registry, _, _ = strings.Cut(registry, ":") // the upstream logs hosts without port
	for _, request := range requests {
		if request.Host != registry {
			continue
		}
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
