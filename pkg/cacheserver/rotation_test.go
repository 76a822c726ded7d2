// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// serveTLS serves the handler with a certificate that can be replaced.
func serveTLS(t *testing.T, handler http.Handler, certificate *atomic.Pointer[tls.Certificate]) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(handler)
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // clients refuse certificates on purpose
	s.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{Certificates: []tls.Certificate{*certificate.Load()}}, nil
	}}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func certificateOf(t *testing.T, ca *upstream.CA, host string) *tls.Certificate {
	t.Helper()
	pair, err := ca.Certificate(host)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// TestCredentialsAndCAAreRotated replaces both at the upstream, and then in the files of the server, in the middle of a
// transfer.
func TestCredentialsAndCAAreRotated(t *testing.T) {
	t.Parallel()
	u := newFaulty(t, upstream.Options{})
	content := u.contents[u.layer]
	var password atomic.Value
	password.Store("old")
	half := make(chan struct{})
	proceed := sync.OnceFunc(func() { close(half) })
	defer proceed()
	registry := u.Handler()
	one, two := newCA(t), newCA(t)
	var certificate atomic.Pointer[tls.Certificate]
	certificate.Store(certificateOf(t, one, "127.0.0.1"))
	front := serveTLS(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch current := password.Load().(string); {
		case r.URL.Path == "/token":
			if _, got, _ := r.BasicAuth(); got != current {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			fmt.Fprintf(w, `{"token":"token-%s","expires_in":300}`, current)
		case r.Header.Get("Authorization") != "Bearer token-"+current:
			answers(401, "WWW-Authenticate", fmt.Sprintf(`Bearer realm="https://%s/token"`, r.Host))(w, r)
		case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, u.layer):
			w.Header().Set("Content-Length", itoa(len(content)))
			w.Write(content[:1000])
			http.NewResponseController(w).Flush()
			<-half
			w.Write(content[1000:])
		default:
			registry.ServeHTTP(w, r)
		}
	}), &certificate)
	cfg := u.config(t)
	cfg.Upstream.RemoteURL, cfg.Upstream.CredentialsDir = front.URL, t.TempDir()
	writeCredentials(t, cfg.Upstream.CredentialsDir, "robot", "old")
	if err := os.WriteFile(cfg.Upstream.CAFile, one.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	c := start(t, cfg, cacheserver.Options{})
	resp := c.open(t, "GET", u.blob())
	defer resp.Body.Close()

	password.Store("new")
	certificate.Store(certificateOf(t, two, "127.0.0.1"))
	front.Config.SetKeepAlivesEnabled(false) // idle connections end
	u.check(t, c, "GET", u.manifest(), unavailable)
	if !strings.Contains(c.log.String(), "certificate signed by unknown authority") {
		t.Errorf("the certificate should be the reason:\n%s", c.log)
	}
	if err := os.WriteFile(cfg.Upstream.CAFile, append(two.PEM(), one.PEM()...), 0o644); err != nil {
		t.Fatal(err)
	}
	u.check(t, c, "GET", u.manifest(), denied)
	writeCredentials(t, cfg.Upstream.CredentialsDir, "robot", "new")
	u.check(t, c, "GET", u.manifest(), fine)
	proceed()
	if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the transfer: %d of %d bytes, %v", len(got), len(content), err)
	}
}
