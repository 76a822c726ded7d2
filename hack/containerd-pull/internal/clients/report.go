// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Report is the JSON document that the commands write to standard output. test/testbed/containerdpull has a copy of
// this type and reads all fields: change both together.
type Report struct {
	// Containerd is the version of containerd's code, for example "v2.4.2".
	Containerd string `json:"containerd"`
	// Reference is the image reference of the command line, "host/repository:tag" or "host/repository@sha256:<hex>".
	Reference string `json:"reference"`
	// Platform is "os/architecture[/variant]". It selects a manifest from an index.
	Platform string `json:"platform"`
	// Seconds is the time from the start of the first client to the end of the last one.
	Seconds float64 `json:"seconds"`
	// Clients has one entry for each client, in the order of their starts.
	Clients []Client `json:"clients"`
}

// Client is the result of one simulated node.
type Client struct {
	// Digest is the digest of the manifest or index to which the reference was resolved, "sha256:<hex>". Empty if the
	// reference could not be resolved.
	Digest digest.Digest `json:"digest,omitempty"`
	// Manifest is the digest of the platform's manifest. It is equal to Digest if the reference is not an index. Empty
	// if the manifest was not fetched.
	Manifest digest.Digest `json:"manifest,omitempty"`
	// Blobs is the number of distinct blobs (config and layers) that were fetched and verified.
	Blobs int `json:"blobs"`
	// Bytes is the total size of these blobs.
	Bytes int64 `json:"bytes"`
	// Start is the start of the client, in seconds after the start of the first client.
	Start float64 `json:"start"`
	// Seconds is the duration of the client's pull, successful or not.
	Seconds float64 `json:"seconds"`
	// Error is the reason of a failure; empty if the client has pulled the image.
	Error string `json:"error,omitempty"`
}

// Image records the content that a pull has fetched so far. It is safe for concurrent use.
type Image struct {
	mu       sync.Mutex // guards the fields below
	resolved digest.Digest
	manifest digest.Digest
	blobs    map[digest.Digest]int64
}

// Resolved records the manifest or index to which the reference was resolved.
func (i *Image) Resolved(d ocispec.Descriptor) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.resolved = d.Digest
}

// FetchedManifest records the manifest of the platform.
func (i *Image) FetchedManifest(d ocispec.Descriptor) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.manifest = d.Digest
}

// FetchedBlob records a blob. A blob that the image refers to several times counts once.
func (i *Image) FetchedBlob(d ocispec.Descriptor) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.blobs == nil {
		i.blobs = map[digest.Digest]int64{}
	}
	i.blobs[d.Digest] = d.Size
}

// client returns the recorded content, without times and error.
func (i *Image) client() Client {
	i.mu.Lock()
	defer i.mu.Unlock()
	c := Client{Digest: i.resolved, Manifest: i.manifest, Blobs: len(i.blobs)}
	for _, size := range i.blobs {
		c.Bytes += size
	}
	return c
}
