// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
)

// Action is what a fault does to a request.
type Action string

// The actions of faults.
const (
	// Hang sends nothing more until the client leaves.
	Hang Action = "hang"
	// Cut closes the connection.
	Cut Action = "cut"
	// Corrupt sends a body whose length is right, with one wrong byte in it.
	Corrupt Action = "corrupt"
	// Answer sends an error of HTTP with a body of the OCI distribution specification.
	Answer Action = "answer"
)

// Fault is what the upstream does instead of answering as it should, for the requests that it selects.
type Fault struct {
	// Host is the registry, docker.io for all names of Docker Hub; empty means all.
	Host string `json:"host,omitempty"`
	// Repository is a whole one; empty means all, and what concerns none.
	Repository string `json:"repository,omitempty"`
	// Kind is what is asked for; empty means everything.
	Kind Kind `json:"kind,omitempty"`
	// Method is GET or HEAD; empty means both.
	Method string `json:"method,omitempty"`

	// Action is what happens. Required.
	Action Action `json:"action"`
	// Status is that of Answer, 400 to 599.
	Status int `json:"status,omitempty"`
	// RetryAfter is the header of Answer, in seconds; 0 means none.
	RetryAfter int `json:"retryAfter,omitempty"`
	// AfterBytes are the bytes of the body that are right: behind them Hang is silent and Cut closes the connection, and
	// the byte that follows them is the wrong one of Corrupt. 0 lets Hang and Cut come before the header. A body that is
	// not longer is not changed, and neither is an error or an answer to HEAD.
	AfterBytes int64 `json:"afterBytes,omitempty"`
}

// Validate returns an error that names the field which is wrong.
func (f Fault) Validate() error {
	kinds := []Kind{"", Ping, Token, Manifest, Blob, Tags, Referrers, Other}
	answers := f.Action == Answer
	switch {
	case !slices.Contains([]Action{Hang, Cut, Corrupt, Answer}, f.Action):
		return fmt.Errorf("action: is %q, must be hang, cut, corrupt or answer", f.Action)
	case !slices.Contains(kinds, f.Kind):
		return fmt.Errorf("kind: is %q, must be one of %q", f.Kind, kinds[1:])
	case f.Method != "" && f.Method != http.MethodGet && f.Method != http.MethodHead:
		return fmt.Errorf("method: is %q, must be GET or HEAD", f.Method)
	case answers && (f.Status < 400 || f.Status > 599):
		return fmt.Errorf("status: is %d, must be from 400 to 599", f.Status)
	case !answers && f.Status != 0:
		return fmt.Errorf("status: is only for the action answer")
	case f.RetryAfter < 0:
		return fmt.Errorf("retryAfter: is %d, must not be negative", f.RetryAfter)
	case !answers && f.RetryAfter != 0:
		return errors.New("retryAfter: is only for the action answer")
	case f.AfterBytes < 0:
		return fmt.Errorf("afterBytes: is %d, must not be negative", f.AfterBytes)
	case answers && f.AfterBytes != 0:
		return errors.New("afterBytes: is not for the action answer")
	}
	return nil
}

func (f *Fault) selects(q *Request) bool {
	return (f.Host == "" || f.Host == q.Host) && (f.Repository == "" || f.Repository == q.Repository) &&
		(f.Kind == "" || f.Kind == q.Kind) && (f.Method == "" || f.Method == q.Method)
}

// inBody tells whether the fault leaves the header alone.
func (f *Fault) inBody() bool { return f.Action == Corrupt || f.Action != Answer && f.AfterBytes > 0 }

// instead does what the fault does in place of an answer.
func (f *Fault) instead(w http.ResponseWriter, r *http.Request) {
	switch f.Action {
	case Answer:
		if f.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(f.RetryAfter))
		}
		writeError(w, f.Status, "UNKNOWN", "a fault of the testbed")
	case Hang:
		<-r.Context().Done()
		panic(http.ErrAbortHandler) // or an empty answer may overtake the end of the connection
	default:
		panic(http.ErrAbortHandler)
	}
}

// faults are those that are in force. It is safe for concurrent use.
type faults struct {
	mu   sync.Mutex // guards list
	list []Fault
}

// set replaces all faults.
func (f *faults) set(list []Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = slices.Clone(list)
}

func (f *faults) get() []Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Fault{}, f.list...) // never nil, which would be null in JSON
}

// of returns the first fault that selects the request, nil if there is none.
func (f *faults) of(q *Request) *Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fault := range f.list {
		if fault.selects(q) {
			return &fault
		}
	}
	return nil
}

// Break replaces the faults of the server; without any it answers as it should. Of several that select a request the
// first one counts. Answers that are on their way are not changed any more.
func (s *Server) Break(list ...Fault) error {
	list = slices.Clone(list)
	for i := range list {
		if err := list[i].Validate(); err != nil {
			return fmt.Errorf("faults[%d].%w", i, err)
		}
		if list[i].Host != "" {
			list[i].Host = registryHost(list[i].Host, s.options.DefaultHost)
		}
	}
	s.faults.set(list)
	return nil
}
