// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/registry-cache/extension/test/testbed/upstream"
)

func TestProxyLeadsToTheRegistry(t *testing.T) {
	t.Parallel()
	registry := upstream.Start(t, upstream.Options{})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- upstream.ServeProxy(ctx, listener, strings.TrimPrefix(registry.URL, "https://")) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serving the proxy: %v", err)
		}
	}()

	transport := registry.Transport()
	transport.DialContext = nil
	transport.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: listener.Addr().String()})
	defer transport.CloseIdleConnections()
	for target, want := range map[string]int{"https://quay.io/v2/": http.StatusOK, "http://quay.io/v2/": http.StatusMethodNotAllowed} {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := transport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("GET %s through the proxy answers %s, want %d", target, answer.Status, want)
		}
	}
	if got := registry.Requests(); len(got) != 1 || got[0].Host != "quay.io" {
		t.Errorf("the registry has got %+v, want one request for quay.io", got)
	}
}
