// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// Request is a line of standard input with --serve: one pull by one simulated node, whose content store contains only
// manifests, in memory. test/testbed/containerdpull has copies of Request and Response: change both together.
type Request struct {
	// ID is repeated in the response.
	ID int64 `json:"id"`
	// Reference, Hosts, Platform, Username, Password and Until are those of Options.
	Reference string `json:"reference"`
	Hosts     string `json:"hosts"`
	Platform  string `json:"platform"`
	Username  string `json:"username,omitempty"`
	Password  string `json:"password,omitempty"`
	Until     Step   `json:"until,omitempty"`
	// Seconds is the time after which the pull fails.
	Seconds float64 `json:"seconds"`
}

// Response is a line of standard output with --serve. The first line has the ID 0 and the version of containerd's code,
// and is written before the first request is read. Each other line is the result of one request, in the order in which
// the pulls end.
type Response struct {
	ID         int64  `json:"id"`
	Containerd string `json:"containerd,omitempty"`
	Client     Client `json:"client"`
}

// serve runs all pulls concurrently until the end of the input and waits for their ends. Cancelling ctx ends the pulls,
// but not the read of the input.
func serve(ctx context.Context, input io.Reader, output io.Writer, containerd string, pull Pull) error {
	var (
		pulls  sync.WaitGroup
		mu     sync.Mutex // guards encoder and failed
		failed error
	)
	encoder := json.NewEncoder(output)
	write := func(r Response) {
		mu.Lock()
		defer mu.Unlock()
		failed = errors.Join(failed, encoder.Encode(r))
	}
	write(Response{Containerd: containerd})
	requests := json.NewDecoder(input)
	requests.DisallowUnknownFields()
	begin := time.Now()
	for {
		var request Request
		err := requests.Decode(&request)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil && (request.Hosts == "" || request.Seconds <= 0) {
			err = errors.New("hosts is required and seconds must be positive")
		}
		if err != nil {
			pulls.Wait()
			return fmt.Errorf("reading a request: %w", err)
		}
		pulls.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, time.Duration(request.Seconds*float64(time.Second)))
			defer cancel()
			write(Response{ID: request.ID, Client: run(ctx, begin, time.Since(begin), request.options(), pull)})
		})
	}
	pulls.Wait()
	return failed
}

func (r Request) options() Options {
	return Options{Reference: r.Reference, Hosts: r.Hosts, Platform: r.Platform, Username: r.Username, Password: r.Password, Until: r.Until}
}
