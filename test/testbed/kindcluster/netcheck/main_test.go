// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

func TestHandler(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(handler("this-node"))
	t.Cleanup(server.Close)
	gone := httptest.NewServer(nil)
	gone.Close()

	for name, tc := range map[string]struct {
		path   string
		status int
		body   string
	}{
		"name":              {"/name", 200, "this-node"},
		"get":               {"/get?url=" + url.QueryEscape(server.URL+"/name"), 200, "this-node"},
		"get, refused":      {"/get?url=" + url.QueryEscape(gone.URL), 502, "connection refused"},
		"get, status":       {"/get?url=" + url.QueryEscape(server.URL+"/nothing"), 502, "status 404"},
		"get, no URL":       {"/get", 502, "unsupported protocol"},
		"lookup":            {"/lookup?name=127.0.0.1", 200, "127.0.0.1"},
		"lookup, no answer": {"/lookup?name=", 502, "no such host"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			resp, err := http.Get(server.URL + tc.path)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != tc.status || !strings.Contains(string(body), tc.body) {
				t.Errorf("status %d, body %q, %v, want %d, %q", resp.StatusCode, body, err, tc.status, tc.body)
			}
		})
	}
}
