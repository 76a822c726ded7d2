// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/registry-cache/extension/pkg/contract"
)

func TestStateAsksWhenNobodyElseDoes(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		reason contract.Reason
		age    time.Duration
		want   int64
	}{
		{"some minutes ago", contract.ReasonAnswers, quietAfter - time.Minute, 0},
		{"long ago", contract.ReasonAnswers, quietAfter + time.Second, 1},
		{"just failed", contract.ReasonUnreachable, failingAfter - 5*time.Second, 0},
		{"failed", contract.ReasonUnreachable, failingAfter + time.Second, 1},
		{"limits", contract.ReasonRateLimited, quietAfter - time.Minute, 0},
		{"has limited long ago", contract.ReasonRateLimited, quietAfter + time.Second, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet && r.URL.Path == "/v2/" {
					asked.Add(1)
				}
			}))
			defer server.Close()
			c, err := New(server.URL, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.watcher.state = contract.NewUpstreamState(tc.reason, "")
			c.watcher.state.LastRequest = time.Now().Add(-tc.age)
			state := c.State(t.Context())
			if got := asked.Load(); got != tc.want {
				t.Errorf("asked %d times, want %d", got, tc.want)
			}
			if tc.want > 0 && state.Reachable != contract.ReachableYes {
				t.Errorf("got %+v", state)
			}
			if c.State(t.Context()); asked.Load() != tc.want {
				t.Errorf("asked again")
			}
		})
	}
}

// Concurrent calls send one request; the other calls return the previous state.
func TestStateIsAskedForByOne(t *testing.T) {
	t.Parallel()
	began, proceed := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(began)
		<-proceed
	}))
	defer server.Close()
	c, err := New(server.URL, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	first := make(chan contract.UpstreamState)
	go func() { first <- c.State(t.Context()) }()
	<-began
	if state := c.State(t.Context()); state.Reachable != contract.ReachableUnknown || state.Reason != contract.ReasonNotAsked {
		t.Errorf("got %+v", state)
	}
	close(proceed)
	if state := <-first; state.Reachable != contract.ReachableYes {
		t.Errorf("got %+v", state)
	}
}

// A slow upstream does not delay State for longer than its limit, and its response is stored when it arrives.
func TestStateOfASlowUpstream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, err := New("https://registry.example.com", Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.responses.next = slowNetwork(20 * time.Second)
		began := time.Now()
		if state := c.State(t.Context()); state.Reason != contract.ReasonNotAsked || time.Since(began) != stateTimeout {
			t.Errorf("after %s: %+v", time.Since(began), state)
		}
		time.Sleep(15 * time.Second) // of the fake clock
		synctest.Wait()
		if state := c.State(t.Context()); state.Reason != contract.ReasonAnswers {
			t.Errorf("got %+v", state)
		}
		c.watcher.state.LastRequest = time.Time{}
		c.responses.next = slowNetwork(time.Hour)
		c.State(t.Context())
		time.Sleep(c.headerTimeout)
		synctest.Wait()
		if state := c.State(t.Context()); state.Reason != contract.ReasonUnreachable {
			t.Errorf("got %+v", state)
		}
	})
}

// slowNetwork responds 200 after a time.
type slowNetwork time.Duration

func (s slowNetwork) RoundTrip(r *http.Request) (*http.Response, error) {
	select {
	case <-time.After(time.Duration(s)):
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
	case <-r.Context().Done():
		return nil, context.Cause(r.Context())
	}
}
