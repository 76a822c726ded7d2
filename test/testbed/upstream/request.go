// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Kind says what a request asks for.
type Kind string

// The kinds of requests. Other is everything that a pull does not need.
const (
	Ping      Kind = "ping"
	Token     Kind = "token"
	Manifest  Kind = "manifest"
	Blob      Kind = "blob"
	Tags      Kind = "tags"
	Referrers Kind = "referrers"
	Other     Kind = "other"
)

// Request is one entry of the request log.
type Request struct {
	// ID counts the requests of a server from 1, also across resets.
	ID int64 `json:"id"`
	// Time is when the request's header had arrived.
	Time time.Time `json:"time"`
	// Method is the HTTP method.
	Method string `json:"method"`
	// Host is the registry that was asked for, without port; docker.io for all names of Docker Hub.
	Host string `json:"host"`
	// Kind is what was asked for.
	Kind Kind `json:"kind"`
	// Repository is empty for Ping and Other. For Token it is the one of the scope.
	Repository string `json:"repository,omitempty"`
	// Reference is the tag or digest in the path; empty for Ping, Token, Tags and Other.
	Reference string `json:"reference,omitempty"`
	// Digest is the digest of the content that was answered, "sha256:<hex>"; empty where there was none.
	Digest string `json:"digest,omitempty"`
	// Range is the request's Range header.
	Range string `json:"range,omitempty"`
	// Status is the HTTP status of the answer. It is 0 while there is none: the request waits, or its client left.
	Status int `json:"status"`
	// Bytes are the bytes of the answer's body so far. They count as soon as they are handed to the connection, so that
	// a client that has an answer finds all of it in the log.
	Bytes int64 `json:"bytes"`
	// Duration is from Time to the end of the answer, in nanoseconds; 0 while it is not over.
	Duration time.Duration `json:"duration"`
	// UserAgent is the request's User-Agent header.
	UserAgent string `json:"userAgent,omitempty"`
	// RemoteAddr is the client's "ip:port".
	RemoteAddr string `json:"remoteAddr"`
}

// parse fills in what the request itself tells.
func parse(r *http.Request, defaultHost string) Request {
	q := Request{
		Time:       time.Now(),
		Method:     r.Method,
		Host:       registryHost(r.Host, defaultHost),
		Kind:       Other,
		Range:      r.Header.Get("Range"),
		UserAgent:  r.UserAgent(),
		RemoteAddr: r.RemoteAddr,
	}
	switch r.URL.Path {
	case "/v2", "/v2/":
		q.Kind = Ping
		return q
	case "/token":
		q.Kind = Token
		q.Repository = scopedRepository(r.URL.Query().Get("scope"))
		return q
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if !ok {
		return q
	}
	// The last two segments tell the kind: <repository>/manifests/<reference>, and a repository has slashes itself.
	path, last := cutLast(path)
	repository, kind := cutLast(path)
	if repository == "" || last == "" {
		return q
	}
	switch kind {
	case "manifests":
		q.Kind, q.Reference = Manifest, last
	case "blobs":
		q.Kind, q.Reference = Blob, last
	case "referrers":
		q.Kind, q.Reference = Referrers, last
	case "tags":
		if last != "list" {
			return q
		}
		q.Kind = Tags
	default:
		return q
	}
	q.Repository = repository
	return q
}

func cutLast(path string) (before, last string) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path
	}
	return path[:i], path[i+1:]
}

// registryHost returns the registry that a Host header names, and defaultHost for IP addresses and localhost.
func registryHost(host, defaultHost string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	switch {
	case host == "localhost" || net.ParseIP(host) != nil:
		return defaultHost
	case host == "registry-1.docker.io" || host == "index.docker.io":
		return "docker.io"
	}
	return host
}

// maxRequests bounds the request log: 40 MB of memory, and more than a run of the e2e suite needs.
const maxRequests = 100_000

// requestLog holds the last maxRequests requests. It is safe for concurrent use.
type requestLog struct {
	mu      sync.Mutex // guards the fields below and what entries points to
	lastID  int64
	entries []*Request
}

// begin appends q and returns the entry, which only update may change.
func (l *requestLog) begin(q Request) *Request {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastID++
	q.ID = l.lastID
	if len(l.entries) == maxRequests {
		l.entries = append(l.entries[:0], l.entries[maxRequests/10:]...)
	}
	l.entries = append(l.entries, &q)
	return &q
}

func (l *requestLog) update(entry *Request, change func(*Request)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(entry)
}

// since returns copies of the entries with an ID above id, oldest first.
func (l *requestLog) since(id int64) []Request {
	l.mu.Lock()
	defer l.mu.Unlock()
	requests := make([]Request, 0, len(l.entries))
	for _, entry := range l.entries {
		if entry.ID > id {
			requests = append(requests, *entry)
		}
	}
	return requests
}

func (l *requestLog) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = nil
}
