// SPDX-License-Identifier: Apache-2.0

// Package cacheserver is the pull-through cache server: listeners, limits and an orderly end around the registry API.
package cacheserver

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/registry-cache/extension/pkg/cacheserver/config"
	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/gc"
	"github.com/registry-cache/extension/pkg/cacheserver/httpapi"
	"github.com/registry-cache/extension/pkg/cacheserver/pullthrough"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

const (
	// defaultDrainTimeout leaves time within the 30 s that Kubernetes gives a pod to end.
	defaultDrainTimeout = 20 * time.Second
	headerReadTimeout   = 10 * time.Second
	idleTimeout         = 2 * time.Minute
	// maxHeaderBytes has room for the headers of containerd, with a token for another registry among them.
	maxHeaderBytes = 16 << 10
	// defaultMaxConnections is enough for hundreds of nodes that pull at the same time. Slow readers cost about 30 KiB
	// each, 160 KiB with TLS.
	defaultMaxConnections = 4096
)

// Options are the optional parts of a Server.
type Options struct {
	// Version is a part of the User-Agent of requests to the upstream. Default "dev".
	Version string
	// Logger gets everything. Default: discarded.
	Logger *slog.Logger
	// DrainTimeout is how long answers that have begun may go on when the server ends. Default 20 s.
	DrainTimeout time.Duration
	// MaxConnections is how many connections clients may have. Those beyond are closed at once. Default 4096.
	MaxConnections int
	// IdleTimeout, MaxTransfers and QueueTimeout limit the requests to the upstream, see upstream.Options.
	IdleTimeout  time.Duration
	MaxTransfers int
	QueueTimeout time.Duration
	// Size returns the current storage.size in bytes. Default: that of the configuration.
	Size func() int64
	// Volume has the limits and the faults of the volume. Its Logger and Registerer are set by New.
	Volume volume.Options
}

// Server is one cache. Several fit into one process if they have different storage roots.
type Server struct {
	log          *slog.Logger
	drainTimeout time.Duration
	listener     net.Listener
	debug        net.Listener
	api          *http.Server
	debugServer  *http.Server
	cache        *pullthrough.Cache
	upstream     *upstream.Client
	store        *store.Store
	collector    *gc.Collector
	volume       *volume.FS
	draining     atomic.Bool
}

// New opens the store and the listeners of a valid configuration. Requests wait until Run. The caller calls Run or
// Close.
func New(cfg config.Config, o Options) (_ *Server, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("validating configuration: %w", err)
	}
	if o.Version == "" {
		o.Version = "dev"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.DrainTimeout == 0 {
		o.DrainTimeout = defaultDrainTimeout
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	s := &Server{log: o.Logger, drainTimeout: o.DrainTimeout}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	o.Volume.Logger, o.Volume.Registerer = o.Logger, registry
	s.volume = volume.New(cfg.Storage.Root, o.Volume)
	s.store, err = store.Open(cfg.Storage.Root, store.Options{
		Volume: s.volume,
		Policy: evict.NewLRU(cfg.Limits().TTL),
	})
	if err != nil {
		return nil, err
	}
	s.collector = gc.New(s.store, gc.Options{
		Limits:     cfg.Limits(),
		Size:       o.Size,
		Built:      buildTime(),
		Logger:     o.Logger,
		Registerer: registry,
	})
	s.upstream, err = upstream.New(cfg.Upstream.RemoteURL, upstream.Options{
		CAFile:              cfg.Upstream.CAFile,
		CredentialsDir:      cfg.Upstream.CredentialsDir,
		ProxyCredentialsDir: cfg.Upstream.ProxyCredentialsDir,
		UserAgent:           "registry-cache/" + o.Version,
		HeaderTimeout:       time.Duration(cfg.Upstream.HeaderTimeout),
		IdleTimeout:         o.IdleTimeout,
		MaxTransfers:        o.MaxTransfers,
		QueueTimeout:        o.QueueTimeout,
		Logger:              o.Logger,
		Registerer:          registry,
	})
	if err != nil {
		return nil, fmt.Errorf("configuring upstream %s: %w", cfg.Upstream.Host, err)
	}
	s.cache = pullthrough.New(s.store, s.upstream, pullthrough.Options{
		RevalidateAfter: time.Duration(cfg.Tags.RevalidateAfter),
		MaxStale:        time.Duration(cfg.Tags.MaxStale),
		Logger:          o.Logger,
		Registerer:      registry,
	})
	api := httpapi.New(cfg.Upstream.Host, s.cache, httpapi.Options{Usable: s.usable, Logger: o.Logger, Registerer: registry})
	s.api = s.httpServer(api)
	s.api.ConnContext = httpapi.ConnContext
	s.api.ConnState = newConnections(cmp.Or(o.MaxConnections, defaultMaxConnections), registry).track
	promauto.With(registry).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "registry_cache_volume_problems",
		Help: "Files and directories on the volume that the cache cannot use, see /volume.",
	}, func() float64 { return float64(len(s.store.Problems())) })
	s.debugServer = s.httpServer(debugHandler(debugPaths{
		metrics:  registry,
		ready:    s.ready,
		upstream: s.upstream.State,
		volume:   s.volume.Health,
		problems: s.store.Problems,
		pprof:    cfg.Debug.PProf,
	}))
	if s.listener, err = net.Listen("tcp", cfg.Listen.Address); err != nil {
		return nil, fmt.Errorf("listening for the registry API: %w", err)
	}
	if cfg.Listen.TLS.CertFile != "" {
		certificate, err := newCertificateFile(cfg.Listen.TLS.CertFile, cfg.Listen.TLS.KeyFile, o.Logger)
		if err != nil {
			return nil, err
		}
		s.listener = tls.NewListener(turns{s.listener}, &tls.Config{
			MinVersion:     tls.VersionTLS12,
			NextProtos:     []string{"http/1.1"},
			GetCertificate: certificate.get,
		})
	}
	if s.debug, err = net.Listen("tcp", cfg.Debug.Address); err != nil {
		return nil, fmt.Errorf("listening for health and metrics: %w", err)
	}
	return s, nil
}

// Address returns the bound host:port of the registry API.
func (s *Server) Address() string { return s.listener.Addr().String() }

// DebugAddress returns the bound host:port of health, metrics and states.
func (s *Server) DebugAddress() string { return s.debug.Addr().String() }

// usable returns why clients must not use the cache at all: a hung volume. Any other state of the volume permits to serve
// readable content and to pass other content through.
func (s *Server) usable() error {
	if h := s.volume.Health(); h.State == volume.Hung {
		return fmt.Errorf("the volume does not respond since %s: %s", h.Since.UTC().Format(time.RFC3339), h.Message)
	}
	return nil
}

// ready returns why new clients must not use the cache.
func (s *Server) ready() error {
	if s.draining.Load() {
		return errors.New("shutting down")
	}
	if err := s.usable(); err != nil {
		return err
	}
	return s.store.Check()
}

// Run serves until ctx ends, then lets answers that have begun end within the drain timeout, and closes everything.
// It returns nil after an orderly end. It may be called once.
func (s *Server) Run(ctx context.Context) error {
	// They end after the last request, so that its uses are recorded.
	maintenance, endMaintenance := context.WithCancel(context.WithoutCancel(ctx))
	var maintained sync.WaitGroup
	maintained.Go(func() { s.collector.Run(maintenance) })
	maintained.Go(func() { s.volume.Monitor(maintenance) })
	defer func() {
		endMaintenance()
		maintained.Wait()
		s.store.Close()
		s.volume.Close()
	}()
	failed := make(chan error, 2)
	go func() { failed <- s.api.Serve(s.listener) }()
	go func() { failed <- s.debugServer.Serve(s.debug) }()
	s.log.Info("Serving", "address", s.Address(), "debugAddress", s.DebugAddress())
	var err error
	running := 2
	select {
	case <-ctx.Done():
	case err = <-failed:
		running--
	}
	err = errors.Join(err, s.drain(context.WithoutCancel(ctx)), s.closeServers())
	for range running {
		if serveErr := <-failed; !errors.Is(serveErr, http.ErrServerClosed) {
			err = errors.Join(err, serveErr)
		}
	}
	s.log.Info("Stopped")
	return err
}

// drain ends the API: new connections are refused at once, so that clients go to the upstream.
func (s *Server) drain(ctx context.Context) error {
	s.draining.Store(true)
	s.log.Info("Shutting down", "drainTimeout", s.drainTimeout.String())
	ctx, cancel := context.WithTimeout(ctx, s.drainTimeout)
	defer cancel()
	err := s.api.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		s.log.Warn("Some answers were cut off by the end of the drain timeout")
		return nil
	}
	return err
}

// Close ends all connections and requests immediately. It may be called more than once, and after Run.
func (s *Server) Close() error {
	err := s.closeServers()
	if s.store != nil {
		s.store.Close()
	}
	if s.volume != nil {
		s.volume.Close()
	}
	return err
}

// closeServers closes everything except the volume, on which the last uses are recorded afterwards.
func (s *Server) closeServers() error {
	var errs []error
	if s.api != nil {
		errs = append(errs, s.api.Close(), s.debugServer.Close())
	}
	for _, l := range []net.Listener{s.listener, s.debug} {
		if l == nil {
			continue
		}
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if s.cache != nil {
		s.cache.Close()
	}
	if s.upstream != nil {
		s.upstream.Close()
	}
	return errors.Join(errs...)
}

func (s *Server) httpServer(handler http.Handler) *http.Server {
	// Containerd speaks nothing else, and under HTTP/2 all answers would share one connection and its fate.
	var http1 http.Protocols
	http1.SetHTTP1(true)
	return &http.Server{
		Handler: handler,
		// "OPTIONS *" is rejected like other unsupported methods.
		DisableGeneralOptionsHandler: true,
		Protocols:                    &http1,
		ReadHeaderTimeout:            headerReadTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeaderBytes,
		ErrorLog:                     newErrorLog(s.log),
	}
}

// newErrorLog passes on the messages of the http package, such as failed TLS handshakes, but not those that the nodes cause on
// purpose.
func newErrorLog(l *slog.Logger) *log.Logger {
	return log.New(&errorLog{slog.NewLogLogger(l.Handler(), slog.LevelWarn).Writer()}, "", 0)
}

// errorLog leaves out that a client has sent a request without TLS, which is answered with 400. That is how nodes find
// out in each round of their probes whether the cache is alive, for much less than a handshake.
type errorLog struct{ io.Writer }

func (w *errorLog) Write(p []byte) (int, error) {
	// Go's library has this reason from 1.12 on; TestRequestWithoutTLS notices another one.
	if bytes.HasSuffix(bytes.TrimSpace(p), []byte("client sent an HTTP request to an HTTPS server")) {
		return len(p), nil
	}
	return w.Writer.Write(p)
}
