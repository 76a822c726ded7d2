// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/registry-cache/extension/test/testbed/images"
)

// maxClientBody bounds what the client reads of an answer: a full request log with long names.
const maxClientBody = 128 << 20

// Client speaks the admin API of a server in another process. It is safe for concurrent use.
type Client struct {
	baseURL string
	http    *http.Client
}

// NewClient returns a client for the admin API at baseURL, for example "http://10.89.0.5:8080". It uses no proxy.
func NewClient(baseURL string) *Client {
	return &Client{baseURL: strings.TrimSuffix(baseURL, "/"), http: &http.Client{Transport: &http.Transport{}}}
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Healthy returns nil if the server answers.
func (c *Client) Healthy(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, "/healthz", nil, nil)
}

// Requests returns the entries of the request log with an ID above since, oldest first. Zero gives all of them.
func (c *Client) Requests(ctx context.Context, since int64) ([]Request, error) {
	var requests []Request
	err := c.do(ctx, http.MethodGet, "/requests?since="+strconv.FormatInt(since, 10), nil, &requests)
	return requests, err
}

// ResetRequests empties the request log.
func (c *Client) ResetRequests(ctx context.Context) error {
	return c.do(ctx, http.MethodDelete, "/requests", nil, nil)
}

// Shape changes latency and bandwidth.
func (c *Client) Shape(ctx context.Context, shaping Shaping) error {
	body := shapingBody{Latency: shaping.Latency.String(), BytesPerSecond: shaping.BytesPerSecond}
	return c.do(ctx, http.MethodPut, "/shaping", body, nil)
}

// Break replaces the faults of the server; without any it answers as it should. Of several that select a request the
// first one counts.
func (c *Client) Break(ctx context.Context, faults ...Fault) error {
	return c.do(ctx, http.MethodPut, "/faults", append([]Fault{}, faults...), nil)
}

// Faults returns the faults that are in force.
func (c *Client) Faults(ctx context.Context) ([]Fault, error) {
	var faults []Fault
	err := c.do(ctx, http.MethodGet, "/faults", nil, &faults)
	return faults, err
}

// Protect replaces what is private on the server; without any all repositories are public.
func (c *Client) Protect(ctx context.Context, private ...Private) error {
	return c.do(ctx, http.MethodPut, "/private", append([]Private{}, private...), nil)
}

// Generate lets the server make the image or index that spec describes and offer it as reference
// ("host/repository:tag"). It returns the digest of its manifest. Another seed makes an image of which no client can
// have a blob.
func (c *Client) Generate(ctx context.Context, reference string, spec images.Spec) (digest string, err error) {
	var result imageResult
	err = c.do(ctx, http.MethodPost, "/images", imageBody{Reference: reference, Spec: spec}, &result)
	return result.Digest, err
}

// do sends in and decodes the answer into out, as JSON; both may be nil.
func (c *Client) do(ctx context.Context, method, path string, in, out any) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("asking upstream for %s %s: %w", method, path, err)
		}
	}()
	var body io.Reader
	if in != nil {
		encoded, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(encoded)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.baseURL+path, body)
	if err != nil {
		return err
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(io.LimitReader(answer.Body, maxClientBody+1))
	if err != nil {
		return err
	}
	switch {
	case answer.StatusCode/100 != 2:
		return fmt.Errorf("%s: %s", answer.Status, bytes.TrimSpace(content))
	case len(content) > maxClientBody:
		return fmt.Errorf("the answer has more than %d bytes", maxClientBody)
	case out == nil:
		return nil
	}
	return json.Unmarshal(content, out)
}
