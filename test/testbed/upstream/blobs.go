// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// blobs keeps blobs as files named by their digest, and knows which repositories have them. The files outlive the
// process, the links do not: a push that finds its files writes only the links. It is safe for concurrent use.
type blobs struct {
	dir string

	mu    sync.Mutex // guards links
	links map[link]struct{}
}

type link struct {
	host, repository string
	digest           v1.Hash
}

func newBlobs(dir string) (*blobs, error) {
	if err := os.MkdirAll(filepath.Join(dir, "sha256"), 0o755); err != nil {
		return nil, err
	}
	return &blobs{dir: dir, links: map[link]struct{}{}}, nil
}

func (b *blobs) path(digest v1.Hash) string {
	return filepath.Join(b.dir, digest.Algorithm, digest.Hex)
}

// put stores what open returns, unless the blob is there, and links it. Open's content must have the digest.
func (b *blobs) put(l link, open func() (io.ReadCloser, error)) error {
	switch _, err := os.Stat(b.path(l.digest)); {
	case errors.Is(err, fs.ErrNotExist):
		if err := b.store(l.digest, open); err != nil {
			return fmt.Errorf("storing blob %s: %w", l.digest, err)
		}
	case err != nil:
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.links[l] = struct{}{}
	return nil
}

func (b *blobs) store(digest v1.Hash, open func() (io.ReadCloser, error)) (err error) {
	content, err := open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, content.Close()) }()
	f, err := os.CreateTemp(b.dir, "incoming-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	got, _, err := v1.SHA256(io.TeeReader(content, f))
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if got != digest {
		return fmt.Errorf("content has digest %s", got)
	}
	return os.Rename(f.Name(), b.path(digest))
}

func (b *blobs) has(l link) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.links[l]
	return ok
}

// serve answers GET and HEAD of a blob, with ranges.
func (b *blobs) serve(w http.ResponseWriter, r *http.Request, q *Request) {
	digest, err := v1.NewHash(q.Reference)
	if err != nil {
		writeError(w, http.StatusBadRequest, "DIGEST_INVALID", "%s is not a digest", q.Reference)
		return
	}
	if !b.has(link{q.Host, q.Repository, digest}) {
		writeError(w, http.StatusNotFound, "BLOB_UNKNOWN", "%s/%s has no blob %s", q.Host, q.Repository, digest)
		return
	}
	f, err := os.Open(b.path(digest))
	if err != nil {
		writeError(w, http.StatusInternalServerError, "UNKNOWN", "opening blob %s: %v", digest, err)
		return
	}
	defer f.Close()
	header := w.Header()
	header.Set("Content-Type", "application/octet-stream")
	header.Set("Docker-Content-Digest", digest.String())
	header.Set("Etag", `"`+digest.String()+`"`)
	http.ServeContent(w, r, "", time.Time{}, f)
}
