// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/registry-cache/extension/pkg/oci"
)

const (
	requestTimeout = 10 * time.Minute
	copyBuffer     = 128 << 10
	// pullsAtOnce is the number of concurrent blob requests of containerd (max_concurrent_downloads).
	pullsAtOnce = 3
)

// client is one node. It uses HTTP/1.1 and its own connections, like containerd.
type client struct {
	base string
	http *http.Client
}

// newClient returns a client of the registry at base. It trusts the CAs in the PEM file ca; empty means none. The caller
// calls close.
func newClient(base, ca string) (*client, error) { return newClientWith(base, ca, &net.Dialer{}) }

func newClientWith(base, ca string, dialer *net.Dialer) (*client, error) {
	t := &http.Transport{
		DialContext:         dialer.DialContext,
		DisableCompression:  true,
		MaxIdleConnsPerHost: pullsAtOnce,
		TLSClientConfig:     &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12},
		ReadBufferSize:      copyBuffer,
	}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, err
		}
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s contains no certificate", ca)
		}
	}
	return &client{base: base, http: &http.Client{Transport: t, Timeout: requestTimeout}}, nil
}

// newSlowClient is newClient with a small receive buffer, so that the server notices a slow client.
func newSlowClient(base, ca string) (*client, error) {
	return newClientWith(base, ca, &net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var optionErr error
		err := c.Control(func(fd uintptr) {
			optionErr = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 8<<10)
		})
		if err != nil {
			return err
		}
		return optionErr
	}})
}

func (c *client) close() { c.http.CloseIdleConnections() }

// do returns an answer with status 200.
func (c *client) do(ctx context.Context, method, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", strings.Join(oci.ManifestMediaTypes(), ", ")+", */*")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	return resp, nil
}

func (c *client) ping(ctx context.Context) error {
	resp, err := c.do(ctx, http.MethodGet, "/v2/")
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// head resolves a tag.
func (c *client) head(ctx context.Context, i image) error {
	resp, err := c.do(ctx, http.MethodHead, "/v2/"+i.repository+"/manifests/"+i.tag)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Docker-Content-Digest"); got != i.digest {
		return fmt.Errorf("HEAD %s:%s: the digest is %q, want %s", i.repository, i.tag, got, i.digest)
	}
	return nil
}

// manifest returns the blobs of the image with the digest.
func (c *client) manifest(ctx context.Context, repository, digest string) ([]blob, error) {
	resp, err := c.do(ctx, http.MethodGet, "/v2/"+repository+"/manifests/"+digest)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(io.LimitReader(resp.Body, oci.MaxManifestSize))
	if err != nil {
		return nil, err
	}
	type descriptor struct {
		Digest string `json:"digest"`
		Size   int64  `json:"size"`
	}
	var m struct {
		Config descriptor   `json:"config"`
		Layers []descriptor `json:"layers"`
	}
	if err := json.Unmarshal(content, &m); err != nil {
		return nil, fmt.Errorf("manifest %s@%s: %w", repository, digest, err)
	}
	var blobs []blob
	for _, d := range append([]descriptor{m.Config}, m.Layers...) {
		blobs = append(blobs, blob{d.Digest, d.Size})
	}
	return blobs, nil
}

// fetch reads a blob to its end. It checks the length, and with verify also the digest.
func (c *client) fetch(ctx context.Context, repository string, b blob, verify bool) error {
	resp, err := c.do(ctx, http.MethodGet, "/v2/"+repository+"/blobs/"+b.digest)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var sum hash.Hash
	sink := io.Discard
	if verify {
		sum = sha256.New()
		sink = sum
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{sink}, resp.Body, make([]byte, copyBuffer))
	switch {
	case err != nil:
		return fmt.Errorf("blob %s: %w", b.digest, err)
	case n != b.size:
		return fmt.Errorf("blob %s: %d of %d bytes", b.digest, n, b.size)
	case verify && "sha256:"+hex.EncodeToString(sum.Sum(nil)) != b.digest:
		return fmt.Errorf("blob %s: content does not match the digest", b.digest)
	}
	return nil
}

// pull sends the requests of containerd for an image with one manifest: HEAD of the tag, GET of the manifest by digest,
// then all blobs, three at a time.
func (c *client) pull(ctx context.Context, i image) error {
	if err := c.head(ctx, i); err != nil {
		return err
	}
	blobs, err := c.manifest(ctx, i.repository, i.digest)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(pullsAtOnce)
	for _, b := range blobs {
		g.Go(func() error { return c.fetch(ctx, i.repository, b, false) })
	}
	return g.Wait()
}
