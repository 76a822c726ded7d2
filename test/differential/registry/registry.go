// SPDX-License-Identifier: Apache-2.0

// Package registry runs an OCI registry with the quirks of a scenario, on loopback addresses.
package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/test/differential/scenario"
)

// Username and Password are the credentials that a registry with the quirk "credentials" accepts.
const (
	Username = "user"
	Password = "correct horse"
)

// Tag is the tag of each image.
const Tag = "v1"

// The hosts of the URLs. The registry has the first one.
const (
	address      = "127.0.0.1"
	otherAddress = "127.0.0.2"
	hostName     = "localhost"
)

// Rounds is the number of rounds. Each round pulls from all repositories.
const Rounds = 2

// Registry is a running registry. It is safe for concurrent use.
type Registry struct {
	s            scenario.Scenario
	repositories []string
	ctx          context.Context // ends with Close
	cancel       context.CancelFunc
	servers      []*http.Server
	handlers     sync.WaitGroup

	origin, target, tokenServer string // base URLs; target and tokenServer may be empty

	mu       sync.Mutex // guards the fields below
	round    int        // 0 or 1
	images   map[string][Rounds]image
	requests []Request
	count    map[string]int  // requests by kind of fault, target and path
	imported map[string]bool // repositories whose blobs are available, for "import-on-manifest"
	used     map[string]bool // identifiers of redirects, for "redirect-single-use"
	tokens   map[string]*token
	last     int // number of the last token or redirect
}

// Start starts a registry in its first round. The caller closes it.
func Start(s scenario.Scenario) (_ *Registry, err error) {
	r := &Registry{
		s: s, images: map[string][Rounds]image{}, count: map[string]int{}, imported: map[string]bool{}, used: map[string]bool{},
		tokens: map[string]*token{},
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	for i := range number(s, "repositories", 1) {
		name := fmt.Sprintf("team-%d/app", i)
		var rounds [Rounds]image
		for round := range rounds {
			if !s.Has("tag-moves") {
				rounds[round], err = newImage(s, name, 0)
			} else {
				rounds[round], err = newImage(s, name, round)
			}
			if err != nil {
				return nil, err
			}
		}
		r.repositories = append(r.repositories, name)
		r.images[name] = rounds
	}
	if r.origin, err = r.listen(address, s.Has("tls"), "registry", r.serveOrigin); err != nil {
		return nil, err
	}
	if s.Has("redirect") && !s.Has("redirect-relative") {
		targetAddress := hostName
		switch {
		case s.Has("redirect-address"):
			targetAddress = otherAddress
		case s.Has("redirect-port"):
			targetAddress = address
		}
		if r.target, err = r.listen(targetAddress, s.Has("tls") && !s.Has("redirect-http"), "target", r.serveTarget); err != nil {
			return nil, err
		}
	}
	if s.Has("bearer") || s.Has("redirect-challenge") {
		tokenAddress := hostName
		if s.Has("realm-port") {
			tokenAddress = address
		}
		if r.tokenServer, err = r.listen(tokenAddress, s.Has("tls"), "token", r.serveToken); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// listen starts a server and returns its base URL, which contains urlHost.
func (r *Registry) listen(urlHost string, withTLS bool, host string, handle func(*response, *http.Request)) (string, error) {
	listener, err := new(net.ListenConfig).Listen(r.ctx, "tcp4", net.JoinHostPort(urlHost, "0"))
	if err != nil {
		return "", err
	}
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		return "", errors.Join(err, listener.Close())
	}
	url := "http://" + net.JoinHostPort(urlHost, port)
	if withTLS {
		certificate, err := serverCertificate()
		if err != nil {
			return "", errors.Join(err, listener.Close())
		}
		// As in a usual registry without HTTP/2.
		listener = tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12})
		url = "https://" + net.JoinHostPort(urlHost, port)
	}
	server := &http.Server{
		ErrorLog:          log.New(io.Discard, "", 0), // clients disconnect on purpose
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if !r.begin() {
				panic(http.ErrAbortHandler)
			}
			defer r.handlers.Done()
			recorded := newResponse(r, w, q, host)
			defer recorded.end()
			if r.s.Has("close") {
				w.Header().Set("Connection", "close")
			}
			handle(recorded, q)
		}),
	}
	r.servers = append(r.servers, server)
	go func() { _ = server.Serve(listener) }() // ends with the error ErrServerClosed in Close
	return url, nil
}

// begin returns false if the registry is closed. Otherwise the caller calls handlers.Done.
func (r *Registry) begin() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx.Err() == nil {
		r.handlers.Add(1)
	}
	return r.ctx.Err() == nil
}

// Close closes all connections and waits for the ends of all requests.
func (r *Registry) Close() {
	r.mu.Lock()
	r.cancel()
	r.mu.Unlock()
	for _, server := range r.servers {
		server.Close()
	}
	r.handlers.Wait()
}

// URL returns the base URL.
func (r *Registry) URL() string { return r.origin }

// References returns for each repository "repository:tag" or, with the quirk "by-digest", "repository@digest".
func (r *Registry) References() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var references []string
	for _, repository := range r.repositories {
		identifier := ":" + Tag
		if r.s.Has("by-digest") {
			identifier = "@" + r.images[repository][r.round].root.digest.String()
		}
		references = append(references, repository+identifier)
	}
	return references
}

// Image describes the image that a client pulls for the platform linux/amd64.
type Image struct {
	// Digest is the digest of the manifest or index to which the tag refers, Manifest that of the manifest.
	Digest, Manifest digest.Digest
	// Blobs is the number of blobs, and Bytes their total size.
	Blobs int
	Bytes int64
}

// Image returns the image of a repository, which is an index of References, in a round.
func (r *Registry) Image(repository, round int) Image {
	i := r.images[r.repositories[repository]][round]
	result := Image{Digest: i.root.digest, Manifest: i.manifest.digest, Blobs: len(i.pulled)}
	for _, blob := range i.pulled {
		result.Bytes += int64(len(blob.bytes))
	}
	return result
}

// NextRound starts the second round.
func (r *Registry) NextRound() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.round = Rounds - 1
	clear(r.imported)
	if r.s.Has("tokens-revoked") {
		clear(r.tokens)
	}
}

// Requests returns the requests that have ended, in the order of their ends.
func (r *Registry) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Request(nil), r.requests...)
}

// serveOrigin serves /v2/<repository>/(manifests|blobs)/<reference> and the targets of relative redirects.
func (r *Registry) serveOrigin(w *response, q *http.Request) {
	if strings.HasPrefix(q.URL.Path, targetPrefix) {
		r.serveTarget(w, q)
		return
	}
	rest := strings.TrimPrefix(q.URL.Path, "/v2/")
	repository, reference, isManifest := strings.Cut(rest, "/manifests/")
	isBlob := false
	if !isManifest {
		repository, reference, isBlob = strings.Cut(rest, "/blobs/")
	}
	if rest != "" && !isManifest && !isBlob || q.Method != http.MethodGet && q.Method != http.MethodHead {
		w.sendError(http.StatusNotFound)
		return
	}
	if !r.authorized(w, q, repository) {
		return
	}
	if rest == "" {
		w.WriteHeader(http.StatusOK)
		return
	}
	target := targetOf(q.Method, isManifest)
	r.pause(q, "pause", target)
	if status, ok := r.s.NumberAt("status", target); ok && r.faulty("status", target, q.URL.Path) {
		w.sendFault(q.Context(), status)
		return
	}
	c, ok := r.lookup(repository, reference, isManifest, target)
	if !ok {
		w.sendError(http.StatusNotFound)
		return
	}
	if location, status, ok := r.redirect(repository, c, isManifest, target); ok {
		w.Header().Set("Location", location)
		w.WriteHeader(status)
		return
	}
	w.sendContent(q.Context(), c, target)
}

func targetOf(method string, isManifest bool) scenario.Target {
	switch {
	case isManifest && method == http.MethodHead:
		return scenario.Head
	case isManifest:
		return scenario.Manifest
	case method == http.MethodHead:
		return scenario.BlobHead
	}
	return scenario.Blob
}

// lookup returns the content of a reference in the current round.
func (r *Registry) lookup(repository, reference string, isManifest bool, target scenario.Target) (content, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rounds, ok := r.images[repository]
	if !ok {
		return content{}, false
	}
	if isManifest && reference == Tag {
		reference = rounds[r.round].root.digest.String()
	}
	for round := r.round; round >= 0; round-- {
		if round < r.round && r.s.Has("old-deleted") {
			break
		}
		contents := rounds[round].blobs
		if isManifest {
			contents = rounds[round].manifests
		}
		if c, ok := contents[digest.Digest(reference)]; ok {
			if target == scenario.Manifest {
				r.imported[repository] = true
			}
			if !isManifest && r.s.Has("import-on-manifest") && !r.imported[repository] {
				return content{}, false
			}
			return c, true
		}
	}
	return content{}, false
}

// faulty counts a request and reports whether the fault applies to it.
func (r *Registry) faulty(fault string, target scenario.Target, path string) bool {
	n := r.increment(fault + " " + string(target) + " " + path)
	if every, ok := r.s.Number("every"); ok {
		return n%every == 0
	}
	return r.s.Has("always") || n <= number(r.s, "times", 1)
}

// increment returns the number of calls with this key, including this one.
func (r *Registry) increment(key string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count[key]++
	return r.count[key]
}

// unique returns a number that was not returned before. The caller holds r.mu.
func (r *Registry) unique() int {
	r.last++
	return r.last
}

// pause waits for the duration of a quirk, or until the client disconnects or the registry is closed.
func (r *Registry) pause(q *http.Request, name string, target scenario.Target) {
	if ms, ok := r.s.NumberAt(name, target); ok {
		r.sleep(q.Context(), time.Duration(ms)*time.Millisecond)
	}
}

// sleep returns false if ctx has ended or the registry was closed.
func (r *Registry) sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
	case <-r.ctx.Done():
	}
	return false
}
