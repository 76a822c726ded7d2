// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/registry-cache/extension/pkg/contract"
)

// reloadingTransport is an http.Transport that is replaced when the CA file changes. It is safe for concurrent use.
type reloadingTransport struct {
	caFile string
	proxy  proxyFunc
	log    *slog.Logger

	mu      sync.Mutex // guards the fields below
	current *http.Transport
	loaded  fileVersion
	failing bool
}

// fileVersion identifies the content of a file by its metadata.
type fileVersion struct {
	modified time.Time
	size     int64
}

func newReloadingTransport(o Options) (*reloadingTransport, error) {
	proxy, err := newProxyFunc(o.ProxyCredentialsDir)
	if err != nil {
		return nil, err
	}
	t := &reloadingTransport{caFile: o.CAFile, proxy: proxy, log: o.Logger}
	version, err := t.version()
	if err != nil {
		return nil, err
	}
	pool, err := rootPool(o.CAFile)
	if err != nil {
		return nil, err
	}
	t.current, t.loaded = t.build(pool), version
	return t, nil
}

// RoundTrip implements http.RoundTripper for the upstream, its token server and the targets of their redirects.
func (t *reloadingTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	return t.latest().RoundTrip(req)
}

// CloseIdleConnections closes the connections without a request.
func (t *reloadingTransport) CloseIdleConnections() { t.latest().CloseIdleConnections() }

// latest returns a transport for the current content of the CA file. If the file is not readable, it returns the previous
// one and logs the error once.
func (t *reloadingTransport) latest() *http.Transport {
	version, versionErr := t.version()
	t.mu.Lock()
	current, loaded := t.current, t.loaded
	t.mu.Unlock()
	if versionErr == nil && version == loaded {
		return current
	}
	pool, err := rootPool(t.caFile)
	err = errors.Join(versionErr, err)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		// The CAs that were read before can still be valid.
		if !t.failing {
			t.log.Warn("Cannot read the CA file again", "error", err)
		}
		t.failing = true
		return current
	}
	t.failing = false
	if t.loaded == loaded {
		t.current.CloseIdleConnections()
		t.current, t.loaded = t.build(pool), version
	}
	return t.current
}

// version returns the current version of the CA file.
func (t *reloadingTransport) version() (fileVersion, error) {
	if t.caFile == "" {
		return fileVersion{}, nil
	}
	info, err := os.Stat(t.caFile)
	if err != nil {
		return fileVersion{}, fmt.Errorf("reading CA file: %w", err)
	}
	return fileVersion{info.ModTime(), info.Size()}, nil
}

// build returns a transport without a limit for headers: the contexts of its requests have one.
func (t *reloadingTransport) build(pool *x509.CertPool) *http.Transport {
	dialer := &net.Dialer{Timeout: connectTimeout, KeepAlive: 15 * time.Second}
	return &http.Transport{
		Proxy:                  t.proxy,
		DialContext:            dialer.DialContext,
		TLSHandshakeTimeout:    connectTimeout,
		TLSClientConfig:        &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		MaxResponseHeaderBytes: 64 << 10,
		MaxIdleConnsPerHost:    32,
		IdleConnTimeout:        90 * time.Second,
		// Without it, net/http would request gzip and decode it. responseTransport handles codings.
		DisableCompression: true,
		// HTTP/1.1 uses one connection for each blob. With HTTP/2, all blobs would share one connection, and fail with it.
		ForceAttemptHTTP2: false,
	}
}

// rootPool returns the CAs of the system and of caFile.
func rootPool(caFile string) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("reading the system's certificate authorities: %w", err)
	}
	if caFile == "" {
		return pool, nil
	}
	pem, err := readFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("reading CA file: %w", err)
	}
	if err := contract.CheckCertificates(string(pem)); err != nil {
		return nil, fmt.Errorf("reading CA file %s: %w", caFile, err)
	}
	pool.AppendCertsFromPEM(pem)
	return pool, nil
}
