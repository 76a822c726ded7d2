// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/oci"
)

// Manifest returns a manifest of at most oci.MaxManifestSize bytes. Its content must have the digest of ref, or, for a tag,
// the digest in the header. Without such a header, the content must have a schema version.
// Errors are *Error, or the context's.
func (c *Client) Manifest(ctx context.Context, repository string, ref oci.Reference) (*Manifest, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, completeTimeout, errHeaderTimeout)
	defer cancel()
	r := manifestRequest{
		client:  c,
		request: request{method: http.MethodGet, repository: repository, kind: "manifests", reference: ref.String()},
		digest:  ref.Digest,
	}
	r.authorization = c.authorization(r.request)
	return repeat(ctx, func() (*Manifest, error) { return r.send(ctx) }, func() bool { return r.progress })
}

// manifestRequest requests a manifest. Like containerd, it continues an interrupted response with the missing part.
type manifestRequest struct {
	client *Client
	request
	digest digest.Digest // of the content; empty if it is not known

	received []byte // by interrupted responses
	progress bool   // the last response had new bytes
}

// send requests the part that was not received yet.
func (r *manifestRequest) send(ctx context.Context) (*Manifest, error) {
	before := len(r.received)
	r.progress = false
	resp, err := r.respond(ctx)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	content, err := readAll(resp, r.request, r.received, oci.MaxManifestSize)
	if err != nil {
		r.keep(resp, content)
		r.progress = len(r.received) > before
		return nil, err
	}
	return r.verify(content, resp.Header)
}

// respond returns a response that begins with the first byte behind r.received. Without usable ranges, it requests all of the
// content again.
func (r *manifestRequest) respond(ctx context.Context) (*http.Response, error) {
	r.part.Offset = int64(len(r.received))
	resp, err := r.client.once(ctx, r.request)
	if r.part.Offset == 0 {
		return resp, err
	}
	if err == nil && resp.StatusCode != http.StatusPartialContent {
		r.restart()
		return resp, nil
	}
	if err == nil {
		_, rangeErr := rangeSize(resp.Header.Get("Content-Range"), r.part.Offset)
		if rangeErr == nil {
			return resp, nil
		}
		err = errors.Join(&Error{Op: r.String(), Err: rangeErr}, resp.Body.Close())
	}
	if failed, ok := errors.AsType[*Error](err); !ok || !failed.RefusesRange() {
		return nil, err
	}
	r.restart()
	return r.client.once(ctx, r.request)
}

// restart drops the received part.
func (r *manifestRequest) restart() { r.received, r.part, r.ifRange = nil, Range{}, "" }

// keep keeps the content of an interrupted response. A range of decoded content cannot be requested.
func (r *manifestRequest) keep(resp *http.Response, content []byte) {
	if resp.Uncompressed {
		r.restart()
		return
	}
	r.received, r.ifRange = content, strongETag(resp)
}

// verify returns the manifest if the content is the requested one.
func (r *manifestRequest) verify(content []byte, header http.Header) (*Manifest, error) {
	expected := r.digest
	if expected == "" {
		if announced, err := oci.ParseDigest(header.Get("Docker-Content-Digest")); err == nil {
			expected = announced
		}
	}
	got := digest.SHA256.FromBytes(content)
	if expected == "" && !isManifest(content) {
		return nil, &Error{Op: r.String(), Err: errors.New("the answer is no manifest")}
	}
	if expected != "" && got != expected {
		return nil, &Error{Op: r.String(), Err: fmt.Errorf("the content has the digest %s instead of %s", got, expected)}
	}
	return &Manifest{MediaType: header.Get("Content-Type"), Digest: got, Content: content}, nil
}

// isManifest distinguishes manifests of any version from other documents, for example from the login page of a proxy.
func isManifest(content []byte) bool {
	var fields struct {
		SchemaVersion int `json:"schemaVersion"`
	}
	return json.Unmarshal(content, &fields) == nil && fields.SchemaVersion > 0
}
