// SPDX-License-Identifier: Apache-2.0

package herd

import (
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Report is what the commands write to stdout, as one JSON document. Who reads it relies on every field: see
// test/testbed/containerdpull, which is changed together with it.
type Report struct {
	// Containerd is the version of containerd's code, for example "v2.4.2".
	Containerd string `json:"containerd"`
	// Reference is what was pulled, "host/repository:tag" or "host/repository@sha256:<hex>".
	Reference string `json:"reference"`
	// Platform is "os/architecture[/variant]", which selects the manifest of an index.
	Platform string `json:"platform"`
	// Seconds are those from the start of the first client to the end of the last.
	Seconds float64 `json:"seconds"`
	// Clients are in the order of their starts.
	Clients []Client `json:"clients"`
}

// Client is what one simulated node pulled.
type Client struct {
	// Digest is what the reference was resolved to, "sha256:<hex>": that of the index if it names one. Empty if the
	// reference could not be resolved.
	Digest digest.Digest `json:"digest,omitempty"`
	// Manifest is the digest of the platform's manifest; that of Digest where there is no index. Empty if it was not
	// fetched.
	Manifest digest.Digest `json:"manifest,omitempty"`
	// Blobs counts the different blobs that were fetched and verified: config and layers, without manifests.
	Blobs int `json:"blobs"`
	// Bytes are the bytes of Blobs.
	Bytes int64 `json:"bytes"`
	// Start is when the client began, in seconds after the first one.
	Start float64 `json:"start"`
	// Seconds are those that the client took, until it failed or had everything.
	Seconds float64 `json:"seconds"`
	// Error is why the client failed; empty if it has the image.
	Error string `json:"error,omitempty"`
}

// Image is what a pull has fetched so far. It is safe for concurrent use.
type Image struct {
	mu       sync.Mutex // guards the fields below
	resolved digest.Digest
	manifest digest.Digest
	blobs    map[digest.Digest]int64
}

// Resolved notes what the reference names.
func (i *Image) Resolved(d ocispec.Descriptor) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.resolved = d.Digest
}

// FetchedManifest notes the manifest of the platform.
func (i *Image) FetchedManifest(d ocispec.Descriptor) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.manifest = d.Digest
}

// FetchedBlob notes a blob, once however often the image names it.
func (i *Image) FetchedBlob(d ocispec.Descriptor) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.blobs == nil {
		i.blobs = map[digest.Digest]int64{}
	}
	i.blobs[d.Digest] = d.Size
}

// client returns what was fetched, without times and error.
func (i *Image) client() Client {
	i.mu.Lock()
	defer i.mu.Unlock()
	c := Client{Digest: i.resolved, Manifest: i.manifest, Blobs: len(i.blobs)}
	for _, size := range i.blobs {
		c.Bytes += size
	}
	return c
}
