// SPDX-License-Identifier: Apache-2.0

// Package blobs serves blobs: from the store, or from a download that stores them.
package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/background"
	"github.com/registry-cache/extension/pkg/cacheserver/download"
	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
)

// Blob is an open blob. It is used by one goroutine, which closes it. Reads of a blob that is not stored wait for the
// upstream, and end with an error instead of io.EOF if bytes are missing or the digest differs.
type Blob interface {
	io.ReadSeekCloser
	// Size returns the size in bytes, -1 if the upstream does not state it; then io.SeekEnd is impossible.
	Size() int64
	// Outcome returns the origin of the content. It can change while the content is read.
	Outcome() result.Outcome
	// Shared returns how many of the bytes that were read came from the download of another request.
	Shared() int64
	// Await returns nil when the byte at the offset can be read, and an error if that is impossible or takes too long.
	// Then the client can still request the blob from the upstream.
	Await(ctx context.Context, offset int64) error
}

// Options are the optional parts of Blobs.
type Options struct {
	// ExpectedSize is that of download.Options. A stored file of another size is not served.
	ExpectedSize func(digest.Digest) (int64, bool)
	// Unstored is called for each object that cannot be stored. Default: nothing happens.
	Unstored func(name string, err error)
	// Logger receives problems that no client sees. Default: discarded.
	Logger *slog.Logger
}

// Blobs are the blobs of one upstream. It is safe for concurrent use.
type Blobs struct {
	store     *store.Store
	upstream  download.Upstream
	downloads *download.Downloads
	options   Options
	group     *background.Group
	// verifications are shared by the requests for a blob. verifying limits those of large blobs that are in progress.
	verifications *background.Coalescer[digest.Digest, struct{}]
	verifying     chan struct{}
	// examinations are those of files after failed reads. examining limits the attempts in progress to one.
	examinations *background.Coalescer[digest.Digest, struct{}]
	examining    chan struct{}
}

// New returns the blobs in a store and behind an upstream. The caller keeps ownership of all arguments.
func New(s *store.Store, u download.Upstream, downloads *download.Downloads, group *background.Group, o Options) *Blobs {
	if o.ExpectedSize == nil {
		o.ExpectedSize = func(digest.Digest) (int64, bool) { return 0, false }
	}
	if o.Unstored == nil {
		o.Unstored = func(string, error) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Blobs{
		store: s, upstream: u, downloads: downloads, options: o, group: group,
		verifications: background.NewCoalescer[digest.Digest, struct{}](group),
		verifying:     make(chan struct{}, maxVerifying),
		examinations:  background.NewCoalescer[digest.Digest, struct{}](group),
		examining:     make(chan struct{}, 1),
	}
}

// Open opens a blob of a repository. part is the part that will be read, at least. ctx must live as long as the blob is
// used. Errors are those of the upstream, of the context, or background.ErrClosed.
func (b *Blobs) Open(ctx context.Context, repository string, d digest.Digest, part download.Part) (Blob, error) {
	began := time.Now()
	stored, err := b.openStored(ctx, began, repository, d)
	if err != nil {
		return nil, err
	}
	if stored != nil {
		return stored, nil
	}
	reader, err := b.downloads.Open(ctx, download.Request{
		Began:      began,
		Repository: repository,
		Digest:     d,
		Part:       part,
		Allowed:    func(ctx context.Context) (bool, error) { return b.contains(ctx, repository, d) },
	})
	if err != nil {
		return nil, err
	}
	return reader, nil
}

// Stat returns the size of a blob in bytes, -1 if the upstream does not state it, without downloading it. Errors are those
// of Open.
func (b *Blobs) Stat(ctx context.Context, repository string, d digest.Digest) (int64, result.Outcome, error) {
	if s := b.linked(repository, d); s != nil {
		return s.Size(), result.Hit, s.Close()
	}
	size, err := b.upstream.HeadBlob(ctx, repository, d)
	if err != nil {
		return 0, "", err
	}
	return size, result.Miss, nil
}

// openStored returns the blob if it is stored for the repository, or if it is stored for another one and the upstream
// confirms that this one contains it. It returns nil if the blob has to be downloaded.
func (b *Blobs) openStored(ctx context.Context, began time.Time, repository string, d digest.Digest) (Blob, error) {
	if s := b.linked(repository, d); s != nil {
		return s, nil
	}
	if b.downloads.Running(d) {
		return nil, nil
	}
	// A download may have ended after the first look.
	if s := b.linked(repository, d); s != nil {
		return s, nil
	}
	content, err := b.store.Content(d)
	s := b.complete(repository, d, content, err)
	if s == nil {
		return nil, nil
	}
	limited, cancel := upstream.AnswerContext(ctx, began, "HEAD "+repository+"@"+d.String())
	defer cancel()
	allowed, err := b.contains(limited, repository, d)
	if err != nil || !allowed {
		return nil, errors.Join(err, s.Close())
	}
	if err := b.store.LinkBlob(repository, d); err != nil {
		b.options.Unstored(repository+"@"+d.String(), err)
	}
	return s, nil
}

// contains reports that the upstream confirms that the repository contains a blob. It returns false without an error if
// the upstream rejects HEAD with a status other than 404, 408, 429 and 5xx, because it may still answer GET.
func (b *Blobs) contains(ctx context.Context, repository string, d digest.Digest) (bool, error) {
	_, err := b.upstream.HeadBlob(ctx, repository, d)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return false, cause
	}
	failed, fromUpstream := errors.AsType[*upstream.Error](err)
	if fromUpstream && !failed.NotFound() && !failed.Temporary() {
		return false, nil
	}
	return err == nil, err
}

// verifyTime limits how long a client waits for a verification. Together with contract.MaxAnswerTime for a blob that must be
// downloaded again, it is less than the 30 s after which containerd gives up a request.
const verifyTime = 2 * time.Second

// verifyPause is the time after a verification in which further ones are not useful: a client that has found another digest
// requests the blob again after 10 s at the earliest (the kubelet's back-off). Other clients may pull an image continuously.
const verifyPause = 10 * time.Second

const (
	// maxVerifying bounds the concurrent verifications for requests, each of which occupies a processor. Smaller blobs than
	// largeBlob (in bytes) do not wait for them.
	maxVerifying = 2
	largeBlob    = 64 << 20
)

// Verify compares stored content with its digest, unless a verification that began after since, or within verifyPause, has
// proven it intact. It deletes corrupt content. If it returns an error, after verifyTime or when ctx ends, the verification continues in the
// background, and the caller must not serve the content. It returns nil, too, if the volume does not respond.
func (b *Blobs) Verify(ctx context.Context, d digest.Digest, since time.Time) error {
	if recently := time.Now().Add(-verifyPause); recently.Before(since) {
		since = recently
	}
	if b.store.VerifiedSince(d, since) {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, verifyTime, &result.Error{Reason: result.Busy, Err: errors.New("the stored content is being verified")})
	defer cancel()
	_, err := b.verifications.Do(ctx, d, func(groupCtx context.Context) (struct{}, error) {
		b.verify(groupCtx, d)
		return struct{}{}, nil
	})
	return err
}

func (b *Blobs) verify(ctx context.Context, d digest.Digest) {
	content, err := b.store.Content(d)
	if err != nil {
		return // there is nothing to verify
	}
	defer func() { _ = content.Close() }() // it was only read
	if info, err := content.Stat(); err != nil || info.Size() >= largeBlob {
		select {
		case b.verifying <- struct{}{}:
			defer func() { <-b.verifying }()
		case <-ctx.Done():
			return
		}
	}
	if _, err := b.store.Verify(ctx, content, d, func() {}); err != nil && ctx.Err() == nil {
		b.options.Logger.Warn("Cannot verify content, or cannot delete corrupt content", "digest", d, "error", err)
	}
}

// Served notes that a client has read an open blob. Stored content is verified again from time to time.
func (b *Blobs) Served(blob Blob) {
	if s, ok := blob.(*stored); ok {
		s.Served()
	}
}

// Unreadable handles an error of a read of an open blob that the client could notice. The stored content is not served until
// it has been examined in the background, and is deleted if it is corrupt. It does not wait for that, because the response ends
// afterwards. The next request downloads the blob again.
func (b *Blobs) Unreadable(blob Blob, readErr error) {
	s, ok := blob.(*stored)
	if !ok {
		return // its download handles errors
	}
	if err := s.Suspect(readErr); err != nil {
		b.options.Logger.Warn("Cannot examine content after a failed read", "error", err)
		return
	}
	b.group.Go(func(ctx context.Context) {
		if err := b.examine(ctx, s.Digest()); err != nil && ctx.Err() == nil {
			b.options.Logger.Warn("Cannot examine content after a failed read, or cannot delete corrupt content", "error", err)
		}
	})
}

// examine examines suspect content until there is a result. It shares an examination in progress; if that ended before the content
// became suspect, another one follows.
func (b *Blobs) examine(ctx context.Context, d digest.Digest) error {
	var err error
	for range 2 {
		_, err = b.examinations.Do(ctx, d, func(ctx context.Context) (struct{}, error) {
			return struct{}{}, store.Conclude(ctx, func() error { return b.tryToExamine(ctx, d) })
		})
		if err != nil || !b.store.Withholds(d) {
			break
		}
	}
	return err
}

func (b *Blobs) tryToExamine(ctx context.Context, d digest.Digest) error {
	select {
	case b.examining <- struct{}{}:
		defer func() { <-b.examining }()
		return b.store.Examine(ctx, d)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// linked returns the blob if it is stored for the repository, or nil.
func (b *Blobs) linked(repository string, d digest.Digest) *stored {
	content, err := b.store.Blob(repository, d)
	return b.complete(repository, d, content, err)
}

// complete returns an opened file as a blob, or nil if opening it failed or bytes are missing.
func (b *Blobs) complete(repository string, d digest.Digest, content *store.Content, err error) *stored {
	if err == nil {
		var info os.FileInfo
		if info, err = content.Stat(); err == nil {
			if want, known := b.options.ExpectedSize(d); known && want != info.Size() {
				err = fmt.Errorf("the file has %d bytes, its manifest states %d", info.Size(), want)
			}
		}
		if err == nil {
			return &stored{content, info.Size()}
		}
		err = errors.Join(err, content.Close())
	}
	if !errors.Is(err, store.ErrNotFound) {
		b.options.Logger.Warn("Cannot read blob", "repository", repository, "digest", d, "error", err)
	}
	return nil
}

// stored is a blob in the store. Being a file, it can be sent by the kernel.
type stored struct {
	*store.Content
	size int64
}

// Size implements Blob.
func (s *stored) Size() int64 { return s.size }

// Outcome implements Blob.
func (s *stored) Outcome() result.Outcome { return result.Hit }

// Shared implements Blob.
func (s *stored) Shared() int64 { return 0 }

// Await implements Blob.
func (s *stored) Await(context.Context, int64) error { return nil }
