// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/pkg/cacheserver/config"
	"github.com/registry-cache/extension/pkg/contract"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

func (c *cache) state(t *testing.T) contract.UpstreamState {
	t.Helper()
	answer := c.debug(t, "/upstream")
	var state contract.UpstreamState
	if err := json.Unmarshal(answer.body, &state); err != nil || answer.status != http.StatusOK {
		t.Fatalf("%d %s: %v", answer.status, answer.body, err)
	}
	return state
}

// basic demands the password "right", and bearer a token that the server at /token issues for known credentials.
func basic(w http.ResponseWriter, r *http.Request) bool {
	if _, password, _ := r.BasicAuth(); password == "right" {
		return false
	}
	answers(401, "WWW-Authenticate", `Basic realm="registry"`)(w, r)
	return true
}

func bearer(w http.ResponseWriter, r *http.Request) bool {
	_, password, given := r.BasicAuth()
	switch {
	case r.URL.Path == "/token" && given && password != "right":
		answers(401)(w, r)
	case r.URL.Path == "/token":
		io.WriteString(w, `{"token":"of `+password+`"}`)
	case r.Header.Get("Authorization") != "Bearer of right" || strings.Contains(r.URL.Path, "hidden"):
		answers(401, "WWW-Authenticate", fmt.Sprintf(`Bearer realm="https://%s/token",service="registry"`, r.Host))(w, r)
	default:
		return false
	}
	return true
}

// The state follows from the requests of clients without another one; if there were none, one request for /v2/ shows
// the same.
func TestUpstreamState(t *testing.T) {
	t.Parallel()
	always := func(answer http.HandlerFunc) fault {
		return func(w http.ResponseWriter, r *http.Request) bool {
			answer(w, r)
			return true
		}
	}
	yes := contract.UpstreamState{Reachable: "yes", Reason: "Answers", Message: "the upstream answers"}
	no := func(reason contract.Reason, message string) contract.UpstreamState {
		return contract.UpstreamState{Reachable: "no", Reason: reason, Message: message}
	}
	for _, tc := range []struct {
		name  string
		fault fault
		// password is that of the credentials, if there are any.
		password string
		// asked is the tag that a client requests, v1 if it is empty.
		asked string
		// want is the state after a request of a client, and after the request of the server itself.
		want contract.UpstreamState
	}{
		{name: "answers", want: yes},
		{name: "has no such image", asked: "nothing", want: yes},
		{name: "limits", fault: always(answers(429)), want: no("RateLimited", "the upstream answered 429 Too Many Requests")},
		{name: "fails", fault: always(answers(503)), want: no("Failing", "the upstream answered 503 Service Unavailable")},
		{name: "cuts connections", fault: always(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), want: no("Unreachable", "EOF")},
		{name: "silent", fault: always(func(_ http.ResponseWriter, r *http.Request) { hang(r) }), want: no("Unreachable", "no answer within the time for headers")},
		{name: "knows the user", fault: basic, password: "right", want: yes},
		{name: "does not know the user", fault: basic, password: "wrong", want: no("Unauthorized", "the upstream answered 401 Unauthorized to the credentials")},
		{name: "wants a user", fault: basic, want: no("Unauthorized", "the upstream answered 401 Unauthorized, and there are no credentials")},
		{name: "knows the user by token", fault: bearer, password: "right", want: yes},
		{name: "does not know the user by token", fault: bearer, password: "wrong", want: no("Unauthorized", "the token server of the upstream answered 401 Unauthorized to the credentials")},
		// A refusal without credentials, and to a user without access, is no problem of the upstream: the image may not exist.
		{name: "does not show it to anybody", fault: bearer, want: yes},
		{name: "does not show it to the user", fault: bearer, password: "right", asked: "hidden", want: yes},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			u := newOrigin(t, upstream.Options{})
			u.push(t, tag, 1)
			cfg := u.config(t)
			if tc.password != "" {
				cfg.Upstream.CredentialsDir = t.TempDir()
				for name, content := range map[string]string{"username": "robot", "password": tc.password} {
					if err := os.WriteFile(filepath.Join(cfg.Upstream.CredentialsDir, name), []byte(content), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			options := cacheserver.Options{}
			if tc.name == "silent" {
				cfg.Upstream.HeaderTimeout = config.Duration(500 * time.Millisecond)
			}
			asked := tc.asked
			if asked == "" {
				asked = tag
			}
			var asks atomic.Int64
			u.inject(func(w http.ResponseWriter, r *http.Request) bool {
				asks.Add(1)
				return tc.fault != nil && tc.fault(w, r)
			})
			ignore := cmpopts.IgnoreFields(contract.UpstreamState{}, "Since", "LastRequest")

			busy := start(t, cfg, options)
			busy.do(t, "HEAD", "manifests/"+asked)
			asks.Store(0)
			if diff := cmp.Diff(tc.want, busy.state(t), ignore); diff != "" {
				t.Errorf("after a request: -want +got:\n%s", diff)
			}
			if got := asks.Load(); got > 0 {
				t.Errorf("the upstream was asked %d times", got)
			}

			cfg.Storage.Root = t.TempDir()
			idle := start(t, cfg, options)
			if diff := cmp.Diff(tc.want, idle.state(t), ignore); diff != "" {
				t.Errorf("without a request: -want +got:\n%s", diff)
			}
			asks.Store(0)
			if diff := cmp.Diff(tc.want, idle.state(t), ignore); diff != "" {
				t.Errorf("at the second look: -want +got:\n%s", diff)
			}
			if got := asks.Load(); got > 0 {
				t.Errorf("the upstream was asked again, %d times", got)
			}
		})
	}
}

func TestUpstreamStateOfAForeignCertificate(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	cfg := u.config(t)
	cfg.Upstream.CAFile = ""
	state := start(t, cfg, cacheserver.Options{}).state(t)
	if state.Reachable != "no" || state.Reason != "CertificateNotTrusted" || !strings.Contains(state.Message, "certificate") {
		t.Errorf("got %+v", state)
	}
}

func TestUpstreamStateOfNobody(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	cfg := u.config(t)
	gone := httptest.NewServer(nil)
	gone.Close()
	cfg.Upstream.RemoteURL = gone.URL
	state := start(t, cfg, cacheserver.Options{}).state(t)
	if state.Reachable != "no" || state.Reason != "Unreachable" || !strings.Contains(state.Message, "connection refused") {
		t.Errorf("got %+v", state)
	}
}

// A request is made by itself only where there was none, and of it no more than one.
func TestUpstreamIsAskedOnceForItsState(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	c := start(t, u.config(t), cacheserver.Options{})
	if state := c.state(t); state.Reachable != "yes" || state.Since.IsZero() || state.LastRequest.IsZero() {
		t.Errorf("got %+v", state)
	}
	c.state(t)
	if got, want := u.requests(), []string{"GET ping "}; !slices.Equal(got, want) {
		t.Errorf("got requests %q, want %q", got, want)
	}
}

func TestUpstreamStateFollows(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	u.push(t, tag, 1)
	c := start(t, u.config(t), cacheserver.Options{})
	c.do(t, "HEAD", "manifests/"+tag)
	up := c.state(t)
	c.do(t, "HEAD", "manifests/"+tag)
	if again := c.state(t); !again.Since.Equal(up.Since) || !again.LastRequest.After(up.LastRequest) {
		t.Errorf("nothing has changed, got %+v after %+v", again, up)
	}
	u.inject(func(w http.ResponseWriter, r *http.Request) bool {
		answers(429)(w, r)
		return true
	})
	c.do(t, "HEAD", "manifests/other")
	down := c.state(t)
	if down.Reason != "RateLimited" || !down.Since.After(up.Since) {
		t.Errorf("got %+v after %+v", down, up)
	}

	// The controller reads the document of the file.
	want, err := os.ReadFile("testdata/upstream.json")
	if err != nil {
		t.Fatal(err)
	}
	down.Since = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	down.LastRequest = down.Since
	got, err := json.MarshalIndent(down, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)+"\n"); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}

	u.inject(nil)
	c.do(t, "HEAD", "manifests/"+tag)
	if state := c.state(t); state.Reachable != "yes" {
		t.Errorf("got %+v", state)
	}
}
