// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
)

// TB is the part of testing.TB that Start needs.
type TB interface {
	Helper()
	TempDir() string
	Cleanup(func())
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Instance is a server that runs in a test, on a port of 127.0.0.1.
type Instance struct {
	*Server
	// URL is "https://127.0.0.1:<port>". Requests to it reach Options.DefaultHost.
	URL string
	// AdminURL is "http://127.0.0.1:<port>", the base URL for NewClient.
	AdminURL string
	// CA signed the server's certificates; CAFile has its certificate as PEM.
	CA     *CA
	CAFile string

	data net.Addr
	stop func()
}

// Start runs a server until the test ends. An empty o.Dir means a temporary folder.
func Start(t TB, o Options) *Instance {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	server, err := New(o)
	if err != nil {
		t.Fatalf("starting upstream: %v", err)
	}
	ca, err := NewCA()
	if err != nil {
		t.Fatalf("starting upstream: %v", err)
	}
	caFile := filepath.Join(t.TempDir(), caCertFile)
	if err := os.WriteFile(caFile, ca.PEM(), 0o644); err != nil {
		t.Fatalf("starting upstream: %v", err)
	}
	data, admin := listen(t), listen(t)

	ctx, cancel := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() {
		if err := server.serveUntil(ctx, ca, data, admin, 0); err != nil {
			t.Errorf("serving upstream: %v", err)
		}
	})
	instance := &Instance{
		Server:   server,
		URL:      "https://" + data.Addr().String(),
		AdminURL: "http://" + admin.Addr().String(),
		CA:       ca,
		CAFile:   caFile,
		data:     data.Addr(),
		stop: func() {
			cancel()
			served.Wait()
		},
	}
	t.Cleanup(instance.Stop)
	return instance
}

// Stop closes the ports and breaks off every answer. The request log can be read after it. It may be called twice.
func (i *Instance) Stop() { i.stop() }

// Transport returns a new transport that trusts the CA and reaches this server under every host name, as clients do
// where the host names resolve to it. The caller closes its idle connections.
func (i *Instance) Transport() *http.Transport {
	roots := x509.NewCertPool()
	roots.AddCert(i.CA.certificate)
	return &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, i.data.Network(), i.data.String())
		},
	}
}

func listen(t TB) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("starting upstream: %v", err)
	}
	return listener
}
