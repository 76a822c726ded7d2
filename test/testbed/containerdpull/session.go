// SPDX-License-Identifier: Apache-2.0

package containerdpull

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"
)

// Step is a step of a pull.
type Step string

// The steps after which a pull can end early.
const (
	// StepResolve resolves the reference and fetches no content.
	StepResolve Step = "resolve"
	// StepManifests fetches the index and the manifest.
	StepManifests Step = "manifests"
)

// defaultPlatform is the platform of a Request that has none.
const defaultPlatform = "linux/amd64"

// Request describes one pull of a Session. The client verifies the content but stores only manifests, in memory.
type Request struct {
	// Reference is "host/repository:tag" or "host/repository@sha256:<hex>". Required.
	Reference string `json:"reference"`
	// Hosts is the directory of containerd's registry hosts (certs.d). Required.
	Hosts string `json:"hosts"`
	// Platform is "os/architecture[/variant]". Default "linux/amd64".
	Platform string `json:"platform"`
	// Username and Password are sent to each host that requests credentials. Default: anonymous.
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
	// Until is the last step of the pull. Default: all steps.
	Until Step `json:"until,omitempty"`
	// Timeout is the time after which the pull fails. Required.
	Timeout time.Duration `json:"-"`
}

// Session is a running command that executes many pulls, which is much faster than one process per pull. It is safe
// for concurrent use.
type Session struct {
	// Containerd is the version of containerd's code, for example "v2.4.2".
	Containerd string

	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stderr *lastBytes
	ended  chan struct{} // is closed after the last response

	sending sync.Mutex // guards writes to stdin

	mu      sync.Mutex // guards the fields below
	last    int64
	waiting map[int64]chan Client
	err     error // why there are no more responses
}

// StartSession starts the command with additional environment variables, each "name=value". The caller closes the
// session. Cancelling ctx ends the command.
func (c Command) StartSession(ctx context.Context, env ...string) (*Session, error) {
	cmd := exec.CommandContext(ctx, string(c), "--serve")
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = 10 * time.Second
	s := &Session{cmd: cmd, stderr: &lastBytes{}, ended: make(chan struct{}), waiting: map[int64]chan Client{}}
	cmd.Stderr = s.stderr
	var err error
	if s.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	responses := json.NewDecoder(stdout)
	responses.DisallowUnknownFields()
	var first response
	if err := responses.Decode(&first); err != nil {
		return nil, fmt.Errorf("starting %s: %w", cmd, errors.Join(err, s.stdin.Close(), cmd.Wait(), s.stderr.err()))
	}
	s.Containerd = first.Containerd
	go s.read(responses)
	return s, nil
}

// response is a line of the command's output.
type response struct {
	ID         int64  `json:"id"`
	Containerd string `json:"containerd"`
	Client     Client `json:"client"`
}

func (s *Session) read(responses *json.Decoder) {
	defer close(s.ended)
	for {
		var r response
		err := responses.Decode(&r)
		s.mu.Lock()
		if err != nil {
			s.err = fmt.Errorf("reading results of %s: %w", s.cmd, errors.Join(err, s.stderr.err()))
			s.mu.Unlock()
			return
		}
		if result, ok := s.waiting[r.ID]; ok {
			result <- r.Client // has a buffer of one element
			delete(s.waiting, r.ID)
		}
		s.mu.Unlock()
	}
}

// Pull executes one pull. A pull that fails is no error; its reason is in the result.
func (s *Session) Pull(r Request) (Client, error) {
	if r.Platform == "" {
		r.Platform = defaultPlatform
	}
	result := make(chan Client, 1)
	s.mu.Lock()
	s.last++
	id := s.last
	s.waiting[id] = result
	s.mu.Unlock()
	line, err := json.Marshal(struct {
		ID int64 `json:"id"`
		Request
		Seconds float64 `json:"seconds"`
	}{id, r, r.Timeout.Seconds()})
	if err != nil {
		return Client{}, err
	}
	s.sending.Lock()
	_, err = s.stdin.Write(append(line, '\n'))
	s.sending.Unlock()
	if err != nil {
		return Client{}, fmt.Errorf("sending a request to %s: %w", s.cmd, errors.Join(err, s.stderr.err()))
	}
	select {
	case client := <-result:
		return client, nil
	case <-s.ended:
	}
	select {
	case client := <-result: // was the last response
		return client, nil
	default:
		s.mu.Lock()
		defer s.mu.Unlock()
		return Client{}, s.err
	}
}

// Close waits for the pulls that are in progress and ends the command.
func (s *Session) Close() error {
	s.sending.Lock()
	err := s.stdin.Close()
	s.sending.Unlock()
	<-s.ended
	if err := errors.Join(err, s.cmd.Wait()); err != nil {
		return fmt.Errorf("%s: %w", s.cmd, errors.Join(err, s.stderr.err()))
	}
	return nil
}

// lastBytes stores the last output of a command. It is safe for concurrent use.
type lastBytes struct {
	mu      sync.Mutex // guards content
	content []byte
}

// maxLastBytes is the number of bytes that lastBytes returns at most.
const maxLastBytes = 4 << 10

func (b *lastBytes) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.content = append(b.content, p...)
	if len(b.content) > 2*maxLastBytes {
		b.content = append([]byte(nil), b.content[len(b.content)-maxLastBytes:]...)
	}
	return len(p), nil
}

// err returns the output as an error, nil if there is none.
func (b *lastBytes) err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.content) == 0 {
		return nil
	}
	return errors.New(string(bytes.TrimSpace(b.content[max(0, len(b.content)-maxLastBytes):])))
}
