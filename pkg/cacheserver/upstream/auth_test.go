// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
)

// tokenServer issues tokens at /token and requires them for all other requests.
type tokenServer struct {
	issued   atomic.Int64
	lifetime int
	// user and password are demanded for a token where they are set.
	user, password string
	// expired is the number of the last token that the registry rejects.
	expired atomic.Int64
}

func (s *tokenServer) handle(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/token" {
		user, password, _ := r.BasicAuth()
		if user != s.user || password != s.password {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		token := "token-" + r.URL.Query().Get("scope") + "-" + string(rune('0'+s.issued.Add(1)))
		json.NewEncoder(w).Encode(map[string]any{"token": token, "expires_in": s.lifetime})
		return
	}
	repository, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/manifests/")
	repository, _, _ = strings.Cut(repository, "/blobs/")
	scope := "repository:" + repository + ":pull"
	prefix := "Bearer token-" + scope + "-"
	number, ok := strings.CutPrefix(r.Header.Get("Authorization"), prefix)
	if !ok || int64(number[0]-'0') <= s.expired.Load() {
		w.Header().Set("WWW-Authenticate", `Bearer realm="https://`+r.Host+`/token",service="registry",scope="`+scope+`"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	content(w, r)
}

func TestTokens(t *testing.T) {
	t.Parallel()
	s := &tokenServer{lifetime: 300}
	r := serve(t, s.handle)
	c := r.client(t, upstream.Options{})
	head := func(repository string) {
		t.Helper()
		if _, err := c.HeadManifest(t.Context(), repository, byTag); err != nil {
			t.Error(err)
		}
	}
	head("a")
	head("a")
	head("b")
	head("b")
	s.expired.Store(2)
	head("a")
	want := []string{
		"HEAD /v2/a/manifests/v1", "GET /token", "HEAD /v2/a/manifests/v1", // challenged, once
		"HEAD /v2/a/manifests/v1",
		"GET /token", "HEAD /v2/b/manifests/v1", // the challenge is known
		"HEAD /v2/b/manifests/v1",
		"HEAD /v2/a/manifests/v1", "GET /token", "HEAD /v2/a/manifests/v1", // refused, once more
	}
	if diff := cmp.Diff(want, r.seen()); diff != "" {
		t.Errorf("requests: -want +got\n%s", diff)
	}
}

func TestOneTokenForManyRequests(t *testing.T) {
	t.Parallel()
	s := &tokenServer{lifetime: 300}
	r := serve(t, s.handle)
	c := r.client(t, upstream.Options{})
	if _, err := c.HeadManifest(t.Context(), "first", byTag); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := c.HeadManifest(t.Context(), "second", byTag); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// Concurrent requests share the exchange; later requests use its result.
	if got := s.issued.Load(); got != 2 {
		t.Errorf("%d tokens for two repositories", got)
	}
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	dir := credentials(t, "user", "old")
	s := &tokenServer{lifetime: 300, user: "user", password: "new"}
	c := serve(t, s.handle).client(t, upstream.Options{CredentialsDir: dir})
	_, err := c.HeadManifest(t.Context(), repository, byTag)
	failed, ok := errors.AsType[*upstream.Error](err)
	if !ok || !failed.Denied() {
		t.Fatalf("wrong password: %v, want a denial", err)
	}
	if text := err.Error(); strings.Contains(text, "old") || strings.Contains(text, "service=") {
		t.Errorf("the error tells too much: %s", text)
	}
	writeCredential(t, dir, "password", "new\n")
	if _, err := c.HeadManifest(t.Context(), repository, byTag); err != nil {
		t.Errorf("after the rotation: %v", err)
	}
}

func TestBasicAuthentication(t *testing.T) {
	t.Parallel()
	r := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "user" || password != "pass:word" {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		content(w, r)
	})
	c := r.client(t, upstream.Options{CredentialsDir: credentials(t, "user", "pass:word")})
	for range 2 {
		if _, err := c.HeadManifest(t.Context(), repository, byTag); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(r.seen()); got != 3 {
		t.Errorf("%d requests, want 3: the challenge and two with credentials", got)
	}
	for name, o := range map[string]upstream.Options{
		"anonymous": {}, "wrong password": {CredentialsDir: credentials(t, "user", "wrong")},
	} {
		_, err := r.client(t, o).HeadManifest(t.Context(), repository, byTag)
		if failed, ok := errors.AsType[*upstream.Error](err); !ok || !failed.Denied() {
			t.Errorf("%s: %v, want a denial", name, err)
		}
	}
}

func TestRedirectionGetsNoCredentials(t *testing.T) {
	t.Parallel()
	var leaked atomic.Value
	storage := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" || r.Header.Get("Referer") != "" {
			leaked.Store(r.Header.Clone())
		}
		http.Error(w, layer, http.StatusOK)
	})
	s := &tokenServer{lifetime: 300}
	r := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") && r.Header.Get("Authorization") != "" {
			http.Redirect(w, r, storage.URL+"/data?signature=secret", http.StatusTemporaryRedirect)
			return
		}
		s.handle(w, r)
	})
	c := r.client(t, upstream.Options{CAFile: bundle(t, r, storage)})
	blob, err := c.Blob(t.Context(), repository, layerDigest, upstream.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	if got := storage.seen(); len(got) != 1 {
		t.Errorf("the storage got %v", got)
	}
	if header := leaked.Load(); header != nil {
		t.Errorf("the storage got the headers %v", header)
	}
	storage.Close()
	_, err = c.Blob(t.Context(), repository, layerDigest, upstream.Range{})
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("storage away: %v, want an error without the signature", err)
	}
}

func TestUnusableTokenServer(t *testing.T) {
	t.Parallel()
	for name, challenge := range map[string]string{
		"http realm":      `Bearer realm="http://127.0.0.1:1/token"`,
		"metadata server": `Bearer realm="https://169.254.169.254/token"`,
		"no realm":        `Bearer service="x"`,
		"unknown scheme":  `Negotiate`,
		"none":            ``,
	} {
		r := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", challenge)
			w.WriteHeader(http.StatusUnauthorized)
		})
		_, err := r.client(t, upstream.Options{}).HeadManifest(t.Context(), repository, byTag)
		if _, ok := errors.AsType[*upstream.Error](err); !ok {
			t.Errorf("%s: %v, want an error of the upstream", name, err)
		}
		if got := len(r.seen()); got != 1 {
			t.Errorf("%s: %d requests", name, got)
		}
	}
	leaky := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			w.Write([]byte(`{"refresh_token":"secret"}`))
			return
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="https://`+r.Host+`/token"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	_, err := leaky.client(t, upstream.Options{}).HeadManifest(t.Context(), repository, byTag)
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("answer without a token: %v", err)
	}
}

// A response of the token server is no information about content, and is not remembered.
func TestFailingTokenServer(t *testing.T) {
	t.Parallel()
	for status, temporary := range map[int]bool{
		http.StatusBadRequest: true, http.StatusNotFound: true, http.StatusTooManyRequests: true, http.StatusBadGateway: true,
		http.StatusUnauthorized: false, http.StatusForbidden: false,
	} {
		var asking atomic.Bool
		asking.Store(true)
		r := serve(t, func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path == "/token":
				w.WriteHeader(status)
			case asking.Load():
				w.Header().Set("WWW-Authenticate", `Bearer realm="https://`+r.Host+`/token"`)
				w.WriteHeader(http.StatusUnauthorized)
			default:
				content(w, r)
			}
		})
		c := r.client(t, upstream.Options{})
		_, err := c.HeadManifest(t.Context(), repository, byTag)
		if failed, ok := errors.AsType[*upstream.Error](err); !ok || failed.NotFound() || failed.Temporary() != temporary || failed.Denied() == temporary {
			t.Errorf("token server answers %d: %v", status, err)
		}
		asking.Store(false)
		if _, err := c.HeadManifest(t.Context(), repository, byTag); err != nil {
			t.Errorf("token server answers %d, registry asks no more: %v", status, err)
		}
	}
}

func credentials(t *testing.T, user, password string) string {
	t.Helper()
	dir := t.TempDir()
	writeCredential(t, dir, "username", user)
	writeCredential(t, dir, "password", password)
	return dir
}

func writeCredential(t *testing.T, dir, name, value string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0o600); err != nil {
		t.Fatal(err)
	}
}

// bundle returns a CA file for all of the registries.
func bundle(t *testing.T, registries ...*registry) string {
	t.Helper()
	var all []byte
	for _, r := range registries {
		content, err := os.ReadFile(r.caFile)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, content...)
	}
	path := filepath.Join(t.TempDir(), "bundle.crt")
	if err := os.WriteFile(path, all, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
