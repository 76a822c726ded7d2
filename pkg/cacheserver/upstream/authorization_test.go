// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
)

// challenge responds 401 with the challenges.
func challenge(w http.ResponseWriter, challenges ...string) {
	for _, c := range challenges {
		w.Header().Add("WWW-Authenticate", c)
	}
	w.WriteHeader(http.StatusUnauthorized)
}

// issue responds like a token server, with a lifetime of one hour.
func issue(w http.ResponseWriter, token string) {
	json.NewEncoder(w).Encode(map[string]any{"token": token, "expires_in": 3600})
}

// repositoryOf returns the repository of a request.
func repositoryOf(r *http.Request) string {
	name := strings.TrimPrefix(r.URL.Path, "/v2/")
	for _, kind := range []string{"/manifests/", "/blobs/"} {
		name, _, _ = strings.Cut(name, kind)
	}
	return name
}

// A token that was accepted and is rejected before its end is dropped, with and without a challenge in the rejection, and
// the same request succeeds with a new one: upstreams B04, B15.
func TestRevokedToken(t *testing.T) {
	t.Parallel()
	for name, reject := range map[string]func(w http.ResponseWriter){
		"401 without a challenge":        func(w http.ResponseWriter) { w.WriteHeader(http.StatusUnauthorized) },
		"401 with an unsupported scheme": func(w http.ResponseWriter) { challenge(w, "Negotiate") },
		"401 with an unusable challenge": func(w http.ResponseWriter) { challenge(w, `Bearer realm="https://169.254.169.254/"`) },
		"403":                            func(w http.ResponseWriter) { w.WriteHeader(http.StatusForbidden) },
		"403 with an irrelevant challenge": func(w http.ResponseWriter) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="https://169.254.169.254/"`)
			w.WriteHeader(http.StatusForbidden)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var key atomic.Int64
			r := serve(t, func(w http.ResponseWriter, r *http.Request) {
				valid := fmt.Sprintf("Bearer key-%d", key.Load())
				switch authorization := r.Header.Get("Authorization"); {
				case r.URL.Path == "/token":
					issue(w, strings.TrimPrefix(valid, "Bearer "))
				case authorization == "":
					challenge(w, `Bearer realm="https://`+r.Host+`/token"`)
				case authorization != valid:
					reject(w)
				default:
					content(w, r)
				}
			})
			c := r.client(t, upstream.Options{})
			for range 3 {
				if _, err := c.HeadManifest(t.Context(), repository, byTag); err != nil {
					t.Errorf("key %d: %v", key.Load(), err)
				}
				key.Add(1)
			}
		})
	}
}

// The token server depends on the repository, and issues no token for another repository: upstreams B08.
func TestTokenServerPerRepository(t *testing.T) {
	t.Parallel()
	r := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if name, ok := strings.CutPrefix(r.URL.Path, "/token/"); ok {
			if !slices.Equal(r.URL.Query()["scope"], []string{"repository:" + name + ":pull"}) {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			issue(w, "of-"+name)
			return
		}
		name := repositoryOf(r)
		if r.Header.Get("Authorization") != "Bearer of-"+name {
			challenge(w, `Bearer realm="https://`+r.Host+`/token/`+name+`",service="registry"`)
			return
		}
		content(w, r)
	})
	c := r.client(t, upstream.Options{})
	for range 2 {
		for _, name := range []string{"a/x", "b/y", "a/z", "b/w"} {
			if _, err := c.HeadManifest(t.Context(), name, byTag); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	// In the second round, every challenge and token is known.
	if got := r.seen(); !slices.Equal(got[len(got)-4:], []string{"HEAD /v2/a/x/manifests/v1", "HEAD /v2/b/y/manifests/v1", "HEAD /v2/a/z/manifests/v1", "HEAD /v2/b/w/manifests/v1"}) {
		t.Errorf("requests: %v", got)
	}
}

// The rejection of an expired token contains a challenge of a token server that issues no anonymous tokens; the response
// to a request without a token contains another one: upstreams B20.
func TestOtherTokenServerAfterARejection(t *testing.T) {
	t.Parallel()
	var key atomic.Int64
	r := serve(t, func(w http.ResponseWriter, r *http.Request) {
		valid := fmt.Sprintf("key-%d", key.Load())
		switch authorization := r.Header.Get("Authorization"); {
		case r.URL.Path == "/users":
			w.WriteHeader(http.StatusForbidden)
		case r.URL.Path == "/anonymous":
			issue(w, valid)
		case authorization == "":
			challenge(w, `Bearer realm="https://`+r.Host+`/anonymous"`)
		case authorization != "Bearer "+valid:
			challenge(w, `Bearer realm="https://`+r.Host+`/users",error="invalid_token"`)
		default:
			content(w, r)
		}
	})
	c := r.client(t, upstream.Options{})
	for range 3 {
		if _, err := c.HeadManifest(t.Context(), repository, byTag); err != nil {
			t.Errorf("key %d: %v", key.Load(), err)
		}
		key.Add(1)
	}
}

// Several challenges in any order: dataplane D2, upstreams B12.
func TestSeveralChallenges(t *testing.T) {
	t.Parallel()
	for name, headers := range map[string]func(bearer string) []string{
		"Basic header first":  func(bearer string) []string { return []string{`Basic realm="r"`, bearer} },
		"Bearer header first": func(bearer string) []string { return []string{bearer, `Basic realm="r"`} },
		"Basic first":         func(bearer string) []string { return []string{`Basic realm="r", ` + bearer} },
		"Bearer first":        func(bearer string) []string { return []string{bearer + `, Basic realm="r"`} },
		"unknown schemes first": func(bearer string) []string {
			return []string{`Negotiate, NTLM TlRM==`, `Digest realm="d",nonce="n"`, bearer}
		},
		"Bearer without a realm": func(bearer string) []string { return []string{`Bearer`, bearer} },
	} {
		for _, user := range []string{"", "user"} {
			t.Run(name+" "+user, func(t *testing.T) {
				t.Parallel()
				r := serve(t, func(w http.ResponseWriter, r *http.Request) {
					switch {
					case r.URL.Path == "/token":
						got, _, _ := r.BasicAuth()
						issue(w, "of-"+got)
					case r.Header.Get("Authorization") != "Bearer of-"+user:
						challenge(w, headers(`Bearer realm="https://`+r.Host+`/token",service="s"`)...)
					default:
						content(w, r)
					}
				})
				o := upstream.Options{}
				if user != "" {
					o.CredentialsDir = credentials(t, user, "password")
				}
				if _, err := r.client(t, o).HeadManifest(t.Context(), repository, byTag); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// The target of a redirect is a registry with its own challenge. It gets an anonymous token, and neither the credentials
// nor the token of the upstream.
func TestRedirectToAnotherRegistry(t *testing.T) {
	t.Parallel()
	var leaked atomic.Value
	target := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if authorization := r.Header.Get("Authorization"); strings.HasPrefix(authorization, "Basic") || strings.Contains(authorization, "upstream") {
			leaked.Store(authorization)
		}
		switch {
		case r.URL.Path == "/token":
			if scopes := r.URL.Query()["scope"]; !slices.Equal(scopes, []string{"repository:" + repository + ":pull", "repository:stored/here:pull"}) {
				t.Errorf("scopes %q", scopes)
			}
			issue(w, "target")
		case r.Header.Get("Authorization") != "Bearer target":
			challenge(w, `Basic realm="r", Bearer realm="https://`+r.Host+`/token",scope="repository:stored/here:pull"`)
		default:
			content(w, r)
		}
	})
	r := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			if user, _, _ := r.BasicAuth(); user != "user" {
				t.Errorf("user %q", user)
			}
			issue(w, "upstream")
		case r.Header.Get("Authorization") != "Bearer upstream":
			challenge(w, `Bearer realm="https://`+r.Host+`/token"`)
		default:
			http.Redirect(w, r, target.URL+r.URL.Path, http.StatusTemporaryRedirect)
		}
	})
	c := r.client(t, upstream.Options{CAFile: bundle(t, r, target), CredentialsDir: credentials(t, "user", "password")})
	for range 2 {
		if _, err := c.HeadManifest(t.Context(), repository, byTag); err != nil {
			t.Error(err)
		}
	}
	if header := leaked.Load(); header != nil {
		t.Errorf("the target got %v", header)
	}
	path := "HEAD /v2/" + repository + "/manifests/v1"
	if diff := cmp.Diff([]string{path, "GET /token", path, path}, target.seen()); diff != "" {
		t.Errorf("requests to the target: -want +got\n%s", diff)
	}
}

// A token server that supports OAuth2 requests only.
func TestTokenByPost(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed} {
		r := serve(t, func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path == "/token" && r.Method == http.MethodPost:
				want := "client_id=registry-cache&grant_type=password&password=pass%26word&scope=repository%3Alibrary%2Falpine%3Apull&service=s&username=user"
				if body, err := io.ReadAll(r.Body); err != nil || string(body) != want {
					t.Errorf("got %s, %v\nwant %s", body, err, want)
				}
				io.WriteString(w, `{"access_token":"t"}`)
			case r.URL.Path == "/token":
				w.WriteHeader(status)
			case r.Header.Get("Authorization") != "Bearer t":
				challenge(w, `Bearer realm="https://`+r.Host+`/token",service="s"`)
			default:
				content(w, r)
			}
		})
		c := r.client(t, upstream.Options{CredentialsDir: credentials(t, "user", "pass&word")})
		if _, err := c.HeadManifest(t.Context(), repository, byTag); err != nil {
			t.Errorf("GET is answered with %d: %v", status, err)
		}
	}
}

// Credentials of a token request do not follow a redirect to another server.
func TestTokenServerRedirects(t *testing.T) {
	t.Parallel()
	var leaked atomic.Value
	other := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Header.Get("Authorization") != "" || len(body) > 0 {
			leaked.Store(r.Header.Get("Authorization") + string(body))
		}
		w.WriteHeader(http.StatusNotFound)
	})
	r := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			http.Redirect(w, r, other.URL+"/token", http.StatusTemporaryRedirect)
			return
		}
		challenge(w, `Bearer realm="https://`+r.Host+`/token"`)
	})
	c := r.client(t, upstream.Options{CAFile: bundle(t, r, other), CredentialsDir: credentials(t, "user", "password")})
	_, err := c.HeadManifest(t.Context(), repository, byTag)
	if _, ok := errors.AsType[*upstream.Error](err); !ok {
		t.Errorf("got %v", err)
	}
	if got := leaked.Load(); got != nil {
		t.Errorf("the other server got %v", got)
	}
}

// Credentials that the token server denies do not lead to an anonymous request, as with containerd: upstreams B21.
func TestDeniedCredentials(t *testing.T) {
	t.Parallel()
	r := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _, given := r.BasicAuth()
		switch {
		case r.URL.Path == "/token" && (given || r.Method == http.MethodPost):
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/token":
			issue(w, "anonymous")
		case r.Header.Get("Authorization") != "Bearer anonymous":
			challenge(w, `Bearer realm="https://`+r.Host+`/token"`)
		default:
			content(w, r)
		}
	})
	c := r.client(t, upstream.Options{CredentialsDir: credentials(t, "user", "wrong")})
	_, err := c.HeadManifest(t.Context(), repository, byTag)
	if denied, ok := errors.AsType[*upstream.Error](err); !ok || !denied.Denied() {
		t.Errorf("got %v", err)
	}
	if state := c.State(t.Context()); state.Reason != "Unauthorized" {
		t.Errorf("state %+v", state)
	}
}

// A token server that issues no anonymous token without a scope is no sign of a problem: upstreams B11.
func TestStateWithoutAScope(t *testing.T) {
	t.Parallel()
	r := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		challenge(w, `Bearer realm="https://`+r.Host+`/token"`)
	})
	if state := r.client(t, upstream.Options{}).State(t.Context()); state.Reason != "Answers" {
		t.Errorf("anonymous: %+v", state)
	}
	c := r.client(t, upstream.Options{CredentialsDir: credentials(t, "user", "password")})
	if state := c.State(t.Context()); state.Reason != "Unauthorized" {
		t.Errorf("with credentials: %+v", state)
	}
}

// A final denial costs a bounded number of requests.
func TestDenialIsFinal(t *testing.T) {
	t.Parallel()
	r := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			issue(w, "t")
			return
		}
		challenge(w, `Bearer realm="https://`+r.Host+`/token"`)
	})
	c := r.client(t, upstream.Options{})
	_, err := c.HeadManifest(t.Context(), repository, byTag)
	if denied, ok := errors.AsType[*upstream.Error](err); !ok || denied.StatusCode != http.StatusUnauthorized {
		t.Errorf("got %v", err)
	}
	path := "HEAD /v2/" + repository + "/manifests/v1"
	if diff := cmp.Diff([]string{path, "GET /token", path}, r.seen()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// The path of the remote URL precedes the repository in requests and scopes.
func TestRemotePath(t *testing.T) {
	t.Parallel()
	r := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			issue(w, "of-"+strings.Join(r.URL.Query()["scope"], " "))
			return
		case r.URL.Path == "/v2/":
		case r.Header.Get("Authorization") != "Bearer of-repository:hub/mirror/library/alpine:pull":
			challenge(w, `Bearer realm="https://`+r.Host+`/token"`)
		default:
			content(w, r)
		}
	})
	for _, path := range []string{"/hub/mirror", "/hub/mirror/"} {
		c := newClient(t, r.URL+path, upstream.Options{CAFile: r.caFile})
		if _, err := c.Manifest(t.Context(), repository, byTag); err != nil {
			t.Error(err)
		}
		if got := readBlob(t, c, 0); got != layer {
			t.Errorf("blob %q", got)
		}
		if state := c.State(t.Context()); state.Reason != "Answers" {
			t.Errorf("state %+v", state)
		}
	}
	if got := r.seen()[0]; got != "GET /v2/hub/mirror/library/alpine/manifests/v1" {
		t.Errorf("first request: %s", got)
	}
}
