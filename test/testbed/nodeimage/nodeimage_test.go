// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestPublishedIsForTheKindAndKubernetesInUse(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ dir, module, prefix string }{
		{"../../..", kindModule, "v0.33.0"},
		{"../../../hack/kind/kubernetes", kubernetesModule, "v1.34."},
	} {
		version, err := runGo(t.Context(), tc.dir, "list", "-m", "-f", "{{.Version}}", tc.module)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(version, tc.prefix) {
			t.Errorf("%s is %s now: take Published from the release notes of that kind for that Kubernetes", tc.module, version)
		}
	}
}

func TestProbe(t *testing.T) {
	t.Parallel()
	const digest = "@sha256:44e222ee2132dab25ff87301682f89eb82c7880ea3a1bf543bfe9708fd08d67d"
	serve := func(manifest http.HandlerFunc) string {
		mux := http.NewServeMux()
		mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/manifests/") {
				manifest(w, r)
			}
		})
		server := httptest.NewServer(mux)
		t.Cleanup(server.Close)
		return strings.TrimPrefix(server.URL, "http://") + "/kindest/node" + digest
	}
	there := serve(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
		w.Header().Set("Content-Length", "2")
		w.Header().Set("Docker-Content-Digest", digest[1:])
	})
	if err := probe(t.Context(), there, time.Minute); err != nil {
		t.Errorf("an image that is there: %v", err)
	}
	missing := serve(http.NotFound)
	if err := probe(t.Context(), missing, time.Minute); err == nil {
		t.Error("an image that is missing: no error")
	}
	hanging := serve(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	if err := probe(t.Context(), hanging, 50*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a registry that hangs: %v, want the deadline's error", err)
	}
}

func TestLabelled(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]bool{"": false, "\n": false, "<no value>\n": false, "1bb4b15be6964aa3\n": true} {
		if got := labelled(answer); got != want {
			t.Errorf("labelled(%q) = %t, want %t", answer, got, want)
		}
	}
}

func TestLock(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(t.Context(), name, func() { t.Error("waits for a lock that nobody holds") })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	told, enough := 0, errors.New("waited enough")
	if _, err := lock(ctx, name, func() { told++; cancel(enough) }); !errors.Is(err, enough) {
		t.Errorf("a lock that is held: %v, want the cause of the cancellation", err)
	}
	if told != 1 {
		t.Errorf("told %d times about the wait, want once", told)
	}
	released := make(chan error, 1)
	unlockSecond, err := lock(t.Context(), name, func() { released <- unlock() })
	if err != nil {
		t.Fatal(err)
	}
	if err := <-released; err != nil {
		t.Error(err)
	}
	if err := unlockSecond(); err != nil {
		t.Error(err)
	}
}
