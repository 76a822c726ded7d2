// SPDX-License-Identifier: Apache-2.0

// Package upstream is a registry that stands for others. Under its own CA it answers for any host name, keeps the
// images of each host apart, can be as slow and as broken as a registry on the internet, and logs every request: a pull
// that a cache served is proven by what is missing in this log.
//
// Clients can only pull. Images come in by Server.Push, or by the admin API that Client speaks.
package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"

	"github.com/registry-cache/extension/test/testbed/images"
)

// Options describe a server.
type Options struct {
	// Dir is the folder of the blobs, made if missing. Blobs of an earlier process in it are used again. Required.
	Dir string
	// DefaultHost is the registry that requests to an IP address or to localhost reach; empty means docker.io.
	DefaultHost string
	// TokenHosts are the registries that demand an anonymous bearer token, as Docker Hub does.
	TokenHosts []string
}

// Server is the registry. Its methods are safe for concurrent use.
type Server struct {
	options Options
	log     requestLog
	shaper  shaper
	tokens  *tokens
	blobs   *blobs

	faults   faults
	privates privates

	mu        sync.Mutex // guards manifests
	manifests map[string]http.Handler
}

// New returns a server without images.
func New(o Options) (*Server, error) {
	if o.DefaultHost == "" {
		o.DefaultHost = "docker.io"
	}
	o.TokenHosts = slices.Clone(o.TokenHosts)
	for i, host := range o.TokenHosts {
		o.TokenHosts[i] = registryHost(host, o.DefaultHost)
	}
	blobs, err := newBlobs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("preparing blob folder: %w", err)
	}
	return &Server{options: o, tokens: newTokens(), blobs: blobs, manifests: map[string]http.Handler{}}, nil
}

// Requests returns the request log, oldest first: at most the last 100000 requests since the last reset.
func (s *Server) Requests() []Request { return s.log.since(0) }

// ResetRequests empties the request log.
func (s *Server) ResetRequests() { s.log.reset() }

// Shape changes latency and bandwidth, also of answers that are on their way.
func (s *Server) Shape(shaping Shaping) error {
	if err := shaping.Validate(); err != nil {
		return err
	}
	s.shaper.set(shaping)
	return nil
}

// Handler returns the registry's pull API. The Host header selects the registry.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serve) }

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	q := parse(r, s.options.DefaultHost)
	entry := s.log.begin(q)
	defer s.log.update(entry, func(e *Request) { e.Duration = max(1, time.Since(e.Time)) })
	if err := wait(r.Context(), s.shaper.get().Latency); err != nil {
		return // the client left
	}
	answer := &response{ResponseWriter: w, request: r, log: &s.log, entry: entry, shaper: &s.shaper}
	switch fault := s.faults.of(&q); {
	case fault == nil:
		s.answer(answer, r, &q)
	case fault.inBody():
		answer.fault = fault
		s.answer(answer, r, &q)
	default:
		fault.instead(answer, r)
	}
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request, q *Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	demandsToken := slices.Contains(s.options.TokenHosts, q.Host)
	private := s.privates.of(q)
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		writeError(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "this registry can only be pulled from")
	case q.Kind == Other, q.Kind == Token && !demandsToken:
		writeError(w, http.StatusNotFound, "UNSUPPORTED", "there is nothing at %s", r.URL.Path)
	case q.Kind == Token:
		s.tokens.serve(w, r, q, private)
	case demandsToken && !s.tokens.allows(r.Header.Get("Authorization"), q.Host, q.Repository, private):
		challenge(w, r, q)
	case !demandsToken && private != nil && !private.admits(r):
		private.demand(w)
	case q.Kind == Blob:
		s.blobs.serve(w, r, q)
	case q.Kind == Ping:
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "{}") // an error means that the client left
	default:
		capture(s.host(q.Host), r).send(w)
	}
}

// host returns the manifests, tags and referrers of a registry; an empty one if nothing was pushed to it.
func (s *Server) host(host string) http.Handler {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h, ok := s.manifests[host]; ok {
		return h
	}
	return newManifests()
}

// Push stores the image or index and everything it consists of, and lets reference ("host/repository:tag", or
// "host/repository@sha256:<hex>" for an artifact without tag) name it from then on.
func (s *Server) Push(ctx context.Context, reference string, artifact images.Artifact) error {
	ref, err := parseReference(reference)
	if err != nil {
		return err
	}
	host := registryHost(ref.Context().RegistryStr(), s.options.DefaultHost)
	s.mu.Lock()
	if _, ok := s.manifests[host]; !ok {
		s.manifests[host] = newManifests()
	}
	s.mu.Unlock()
	if err := s.push(ctx, host, ref.Context().RepositoryStr(), ref.Identifier(), artifact); err != nil {
		return fmt.Errorf("pushing %s: %w", reference, err)
	}
	return nil
}

func (s *Server) push(ctx context.Context, host, repository, identifier string, artifact images.Artifact) error {
	switch artifact := artifact.(type) {
	case v1.ImageIndex:
		if err := s.pushChildren(ctx, host, repository, artifact); err != nil {
			return err
		}
	case v1.Image:
		if err := s.pushBlobs(ctx, host, repository, artifact); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%T is neither an image nor an index", artifact)
	}
	return s.putManifest(ctx, host, repository, identifier, artifact)
}

func (s *Server) pushChildren(ctx context.Context, host, repository string, index v1.ImageIndex) error {
	children, err := partial.Manifests(index)
	if err != nil {
		return fmt.Errorf("reading index: %w", err)
	}
	for _, child := range children {
		artifact, ok := child.(images.Artifact)
		if !ok {
			return fmt.Errorf("index holds a %T", child)
		}
		digest, err := artifact.Digest()
		if err != nil {
			return err
		}
		if err := s.push(ctx, host, repository, digest.String(), artifact); err != nil {
			return fmt.Errorf("manifest %s: %w", digest, err)
		}
	}
	return nil
}

func (s *Server) pushBlobs(ctx context.Context, host, repository string, image v1.Image) error {
	layers, err := image.Layers()
	if err != nil {
		return fmt.Errorf("reading layers: %w", err)
	}
	config, err := partial.ConfigLayer(image)
	if err != nil {
		return fmt.Errorf("reading config: %w", err)
	}
	for _, layer := range append(slices.Clone(layers), config) {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		digest, err := layer.Digest()
		if err != nil {
			return err
		}
		if err := s.blobs.put(link{host, repository, digest}, layer.Compressed); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) putManifest(ctx context.Context, host, repository, identifier string, artifact images.Artifact) error {
	raw, err := artifact.RawManifest()
	if err != nil {
		return fmt.Errorf("reading manifest: %w", err)
	}
	mediaType, err := artifact.MediaType()
	if err != nil {
		return fmt.Errorf("reading media type: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPut, "/v2/"+repository+"/manifests/"+identifier, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", string(mediaType))
	if c := capture(s.host(host), r); c.status != http.StatusCreated {
		return errors.New("storing manifest: " + c.body.String())
	}
	return nil
}

func parseReference(reference string) (name.Reference, error) {
	ref, err := name.ParseReference(reference, name.StrictValidation)
	if err != nil {
		return nil, fmt.Errorf("reference: %w", err)
	}
	return ref, nil
}

func newManifests() http.Handler {
	silent := registry.Logger(log.New(io.Discard, "", 0)) // there is a request log
	return registry.New(registry.WithReferrersSupport(true), silent)
}
