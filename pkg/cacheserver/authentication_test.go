// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// Ways of authentication with which containerd pulls directly. Each pull goes through the cache without a fallback; the key
// of the registry changes before each pull, so that tokens are rejected before their end.
func TestAuthentication(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		// reject responds to a request without a valid authorization; realm is the URL of the token server.
		reject func(w http.ResponseWriter, authorization, realm string)
	}{
		{"Basic before Bearer", func(w http.ResponseWriter, _, realm string) {
			answers(401, "WWW-Authenticate", fmt.Sprintf(`Basic realm="r", Bearer realm="%s/token"`, realm))(w, nil)
		}},
		{"no challenge for an old token", func(w http.ResponseWriter, authorization, realm string) {
			if authorization != "" {
				answers(401)(w, nil)
				return
			}
			answers(401, "WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token"`, realm))(w, nil)
		}},
		{"403 for an old token", func(w http.ResponseWriter, authorization, realm string) {
			if authorization != "" {
				answers(403)(w, nil)
				return
			}
			answers(401, "WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token"`, realm))(w, nil)
		}},
		{"another token server for an old token", func(w http.ResponseWriter, authorization, realm string) {
			if authorization != "" {
				realm += "/denied"
			}
			answers(401, "WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",error="invalid_token"`, realm))(w, nil)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			u := newOrigin(t, upstream.Options{})
			var key atomic.Int64
			u.inject(func(w http.ResponseWriter, r *http.Request) bool {
				valid := fmt.Sprintf("key-%d", key.Load())
				switch authorization := r.Header.Get("Authorization"); {
				case r.URL.Path == "/token":
					fmt.Fprintf(w, `{"token":%q,"expires_in":3600}`, valid)
				case strings.HasSuffix(r.URL.Path, "/denied/token"):
					w.WriteHeader(http.StatusForbidden)
				case authorization == "Bearer "+valid:
					return false
				default:
					tc.reject(w, authorization, "https://"+r.Host)
				}
				return true
			})
			c := start(t, u.config(t), cacheserver.Options{})
			for i := range 3 {
				version := fmt.Sprintf("v%d", i)
				u.push(t, version, uint64(i+1))
				if err := c.pull(t.Context(), version); err != nil {
					t.Errorf("pull %d: %v", i, err)
				}
				key.Add(1)
			}
		})
	}
}

// The upstream redirects blobs to another registry, which issues its own tokens.
func TestRedirectionToARegistryWithTokens(t *testing.T) {
	t.Parallel()
	u := newFaulty(t, upstream.Options{})
	var leaked atomic.Int64
	other := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch authorization := r.Header.Get("Authorization"); {
		case r.URL.Path == "/token":
			io.WriteString(w, `{"token":"other"}`)
		case authorization == "":
			answers(401, "WWW-Authenticate", fmt.Sprintf(`Bearer realm="https://%s/token"`, r.Host))(w, r)
		case authorization != "Bearer other":
			leaked.Add(1)
			w.WriteHeader(http.StatusForbidden)
		default:
			w.Write(u.contents[r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]])
		}
	}))
	defer other.Close()
	u.inject(onBlobs(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	c := start(t, u.config(t), cacheserver.Options{})
	if err := c.pull(t.Context(), tag); err != nil {
		t.Error(err)
	}
	if leaked.Load() != 0 {
		t.Errorf("the other registry got %d foreign tokens", leaked.Load())
	}
}
