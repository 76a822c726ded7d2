// SPDX-License-Identifier: Apache-2.0

// Package download transfers blobs from the upstream to the volume and, at the same time, to all readers. Each byte is
// transferred once, whatever ranges the readers request.
//
// A download has three kinds of goroutines: its supervisor starts and ends transfers, each transfer writes the body of one
// upstream response to the file, and a hasher verifies the bytes in their order. Readers read the file. All of them share
// the state in type download. The decisions are pure functions of package-internal type view.
package download

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/registry-cache/extension/pkg/cacheserver/background"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
)

// Upstream is the part of *upstream.Client that downloads use.
type Upstream interface {
	Blob(ctx context.Context, repository string, d digest.Digest, part upstream.Range) (*upstream.Blob, error)
	HeadBlob(ctx context.Context, repository string, d digest.Digest) (int64, error)
}

// Options are the optional parts of Downloads.
type Options struct {
	// ExpectedSize returns the size that a manifest states for a blob, in bytes, and whether one does. A response with
	// another size is not used. Default: no size is known.
	ExpectedSize func(digest.Digest) (int64, bool)
	// Import makes an upstream that is a cache itself load a blob, by requesting a manifest that names it. It returns
	// whether it requested one. Default: none.
	Import func(ctx context.Context, repository string, d digest.Digest) (bool, error)
	// Verified is called after the verification of a digest, with the size in bytes. Default: none.
	Verified func(d digest.Digest, size int64)
	// Unstored is called for each blob that cannot be stored. Default: none.
	Unstored func(d digest.Digest, err error)
	// Logger receives problems that no client sees. Default: discarded.
	Logger *slog.Logger
	// Registerer receives the metrics. Default: none.
	Registerer prometheus.Registerer
	// ExtraConnections bounds the connections of all blobs together that only increase throughput. Default 32.
	ExtraConnections int
}

// Downloads are the running downloads of one cache. It is safe for concurrent use.
type Downloads struct {
	store    *store.Store
	upstream Upstream
	group    *background.Group
	options  Options
	metrics  *metrics
	// extra holds one element for each connection that only increases throughput.
	extra chan struct{}
	pace  *pace

	mu     sync.Mutex // guards active
	active map[digest.Digest]*download
}

// New returns an empty set of downloads. Their goroutines belong to the group; the owner of the group closes it.
func New(s *store.Store, u Upstream, group *background.Group, o Options) *Downloads {
	if o.ExpectedSize == nil {
		o.ExpectedSize = func(digest.Digest) (int64, bool) { return 0, false }
	}
	if o.Import == nil {
		o.Import = func(context.Context, string, digest.Digest) (bool, error) { return false, nil }
	}
	if o.Verified == nil {
		o.Verified = func(digest.Digest, int64) {}
	}
	if o.Unstored == nil {
		o.Unstored = func(digest.Digest, error) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.ExtraConnections == 0 {
		o.ExtraConnections = 32
	}
	return &Downloads{
		store:    s,
		upstream: u,
		group:    group,
		options:  o,
		metrics:  newMetrics(o.Registerer),
		extra:    make(chan struct{}, o.ExtraConnections),
		pace:     &pace{},
		active:   map[digest.Digest]*download{},
	}
}

// Running reports that the blob is being downloaded.
func (m *Downloads) Running(d digest.Digest) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.active[d] != nil
}

// Request is a request for a blob.
type Request struct {
	// Began is the time at which the request of the client began. The client gets an answer within contract.MaxAnswerTime
	// after it. Default: now.
	Began      time.Time
	Repository string
	Digest     digest.Digest
	// Part is the requested part.
	Part Part
	// Allowed verifies that the repository contains the blob. It is called if another repository began the download.
	// Returning false without an error means that only a transfer for this repository can prove it.
	Allowed func(ctx context.Context) (bool, error)
}

// Open returns a reader of a blob that is not stored yet. It joins the running download, or starts one. The first bytes
// need not have arrived: see Reader.Await. ctx must live as long as the reader is used; the caller closes the reader.
func (m *Downloads) Open(ctx context.Context, r Request) (*Reader, error) {
	if r.Began.IsZero() {
		r.Began = time.Now()
	}
	limited, cancel := upstream.AnswerContext(ctx, r.Began, "GET "+r.Repository+"@"+r.Digest.String())
	defer cancel()
	size, err := m.size(limited, r)
	if err != nil {
		return nil, orCause(limited, err)
	}
	reader, allowed, err := m.join(ctx, limited, r, size)
	if err != nil {
		return nil, err
	}
	if !allowed {
		if allowed, err = r.Allowed(limited); err == nil && allowed && !reader.download.allow(r.Repository) {
			if err := m.store.LinkBlob(r.Repository, r.Digest); err != nil {
				m.options.Unstored(r.Digest, err)
			}
		}
	}
	switch {
	case err != nil:
	case !allowed:
		err = reader.passThrough(limited, r.Part.firstByte(size))
	default:
		err = reader.awaitStart(limited)
	}
	if err != nil {
		return nil, errors.Join(orCause(limited, err), reader.Close())
	}
	return reader, nil
}

// size returns the size of a blob in bytes, -1 if it is unknown. Only the request for the last bytes of an unknown blob
// requests the size from the upstream.
func (m *Downloads) size(ctx context.Context, r Request) (int64, error) {
	if size, known := m.options.ExpectedSize(r.Digest); known {
		return size, nil
	}
	m.mu.Lock()
	running := m.active[r.Digest]
	m.mu.Unlock()
	if running != nil || r.Part.Suffix == 0 {
		return -1, nil
	}
	return m.upstream.HeadBlob(ctx, r.Repository, r.Digest)
}

// join adds a reader to the running download of a blob, which it starts if there is none. allowed reports that the
// repository is known to contain the blob. ctx is the context of the reader, limit that of the wait.
func (m *Downloads) join(ctx, limit context.Context, r Request, size int64) (reader *Reader, allowed bool, err error) {
	for {
		reader, allowed, ending, err := m.tryJoin(ctx, r, size)
		if ending == nil {
			return reader, allowed, err
		}
		// Its bytes can be used when it has ended.
		select {
		case <-ending.gone:
		case <-limit.Done():
			return nil, false, context.Cause(limit)
		}
	}
}

// tryJoin is join, except that it returns a download that accepts no more readers.
func (m *Downloads) tryJoin(ctx context.Context, r Request, size int64) (reader *Reader, allowed bool, ending *download, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d := m.active[r.Digest]; d != nil {
		reader, allowed := d.addReader(ctx, r, true)
		if reader == nil {
			return nil, false, d, nil
		}
		if !reader.hit {
			m.metrics.followers.Inc()
		}
		return reader, allowed, nil, nil
	}
	d := newDownload(m, r.Digest, size, r.Repository)
	reader, _ = d.addReader(ctx, r, false)
	begun := m.group.Go(func(ctx context.Context) {
		defer m.remove(d)
		d.run(ctx)
	})
	if !begun {
		return nil, false, nil, background.ErrClosed
	}
	m.active[r.Digest] = d
	m.metrics.downloads.Inc()
	return reader, true, nil, nil
}

// remove removes a download that has ended.
func (m *Downloads) remove(d *download) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.active, d.digest)
	close(d.gone)
	m.metrics.downloads.Dec()
}
